import { Either } from "effect"
import * as Fs from "node:fs"

/** Far beyond any configuration, and small enough to be read whole. */
const BYTES_MAX = 1024 * 1024

/** The text of a file, or why it cannot be had. */
export const read = (path: string): Either.Either<string, string> =>
  Either.try({
    try: () => {
      const descriptor = Fs.openSync(path, Fs.constants.O_RDONLY | Fs.constants.O_NONBLOCK)
      try {
        const stat = Fs.fstatSync(descriptor)
        if (!stat.isFile()) throw new Error("is not a regular file")
        if (stat.size > BYTES_MAX) throw new Error(`is larger than ${BYTES_MAX} bytes`)
        return Fs.readFileSync(descriptor, "utf8")
      } finally {
        Fs.closeSync(descriptor)
      }
    },
    catch: (cause) => (cause instanceof Error ? cause.message : String(cause))
  })

/** Why a file that holds a secret is not private enough, with the command that mends it; null when it is. */
export const exposure = (path: string): string | null => {
  const stat = Fs.statSync(path, { throwIfNoEntry: false })
  if (stat === undefined) return null
  if ((stat.mode & 0o077) !== 0) return `holds a secret and may be read by others than its owner: chmod 600 ${path}`
  const me = process.getuid?.()
  const trusted = me === undefined || stat.uid === me || stat.uid === 0
  return trusted ? null : `holds a secret and belongs to user ${stat.uid}: chown it to the user that volumed runs as`
}

export interface Entry {
  readonly key: string
  readonly value: string
  readonly line: number
}

export interface Parsed {
  readonly entries: ReadonlyArray<Entry>
  readonly problems: ReadonlyArray<{ readonly line: number; readonly problem: string }>
}

/** Lines `KEY=value` as a shell or systemd reads them: blank lines, `#` comments, an optional `export`, quotes. */
export const parse = (text: string): Parsed => {
  const entries: Array<Entry> = []
  const problems: Array<Parsed["problems"][number]> = []
  for (const [index, raw] of text
    .replace(/^\ufeff/, "")
    .split(/\r?\n/)
    .entries()) {
    const line = index + 1
    const trimmed = raw.trim()
    if (trimmed === "" || trimmed.startsWith("#")) continue
    const match = /^(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)$/.exec(trimmed)
    const value = match?.[2] === undefined ? null : unquote(match[2])
    const key = match?.[1]
    if (key === undefined || value === null) problems.push({ line, problem: "is not KEY=value" })
    else if (entries.some((entry) => entry.key === key)) problems.push({ line, problem: `sets ${key} a second time` })
    else entries.push({ key, value, line })
  }
  return { entries, problems }
}

const unquote = (value: string): string | null => {
  // A shell writes a quote inside single quotes as '\''.
  if (value.startsWith("'")) {
    if (!/^(?:'[^']*'|\\')+$/.test(value)) return null
    return value.replaceAll(/'([^']*)'|\\'/g, (_, inner: string | undefined) => inner ?? "'")
  }
  if (value.startsWith('"'))
    return /^"(?:[^"\\]|\\.)*"$/.test(value) ? value.slice(1, -1).replaceAll(/\\(["\\$`])/g, "$1") : null
  return value
}

/** The reverse, for printing. */
export const quote = (value: string): string =>
  /^[A-Za-z0-9_./:,@%+=[\]-]*$/.test(value) ? value : `'${value.replaceAll("'", `'\\''`)}'`
