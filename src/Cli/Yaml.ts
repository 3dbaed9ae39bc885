import { stringify } from "yaml"

/** A result as YAML that `apply -f` would read again: no line folded, nothing aliased. */
export const render = (value: unknown): string => stringify(value, { lineWidth: 0, aliasDuplicateObjects: false })
