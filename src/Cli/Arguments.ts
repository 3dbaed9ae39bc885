import { parseArgs } from "node:util"
import { nearest } from "../../schema/Nearest.ts"
import {
  type CommandName,
  commands,
  flagText,
  global,
  isCommand,
  isOption,
  names,
  type Option,
  type OptionName,
  optionOf,
  options,
  optionsOf
} from "./Commands.ts"
import * as Help from "./Help.ts"

/** A command line that was understood. Values are as typed: each command reads its own. */
export interface Invocation {
  readonly command: CommandName
  readonly positionals: ReadonlyArray<string>
  readonly values: Readonly<Partial<Record<OptionName, string>>>
  readonly flags: ReadonlySet<OptionName>
  readonly server: string
  readonly output: "table" | "json" | "yaml"
}

export type Parsed =
  | { readonly _tag: "Run"; readonly invocation: Invocation }
  | { readonly _tag: "Help"; readonly text: string }
  | { readonly _tag: "Version" }
  | { readonly _tag: "Wrong"; readonly message: string }

export const parse = (
  argv: ReadonlyArray<string>,
  environment: Readonly<Record<string, string | undefined>>
): Parsed => {
  const { tokens } = parseArgs({
    args: [...argv],
    options: Object.fromEntries(Object.entries<Option>(options).map(([name, option]) => [name, declared(option)])),
    // Strictness is ours: the tokens say which flag is unknown and so what was probably meant.
    strict: false,
    allowPositionals: true,
    tokens: true
  })
  const words = tokens.filter((token) => token.kind === "positional").map((token) => token.value)
  const given = tokens.filter((token) => token.kind === "option")
  const first = words[0] === "help" ? words[1] : words[0]
  if (first !== undefined && !isCommand(first)) return wrong(`unknown command ${quote(first)}`, nearest(first, names))
  const command = first === undefined ? null : first
  const seen = read(given, command)
  if (typeof seen === "string") return { _tag: "Wrong", message: seen }
  if (seen.flags.has("help") || words[0] === "help") return { _tag: "Help", text: Help.text(command) }
  if (seen.flags.has("version")) return { _tag: "Version" }
  if (command === null) return wrong("which command?", null)
  return complete(command, words.slice(1), seen, environment)
}

const declared = (option: Option) => ({
  type: option.kind === "flag" ? ("boolean" as const) : ("string" as const),
  ...(option.short === undefined ? {} : { short: option.short })
})

interface Seen {
  readonly values: Partial<Record<OptionName, string>>
  readonly flags: Set<OptionName>
}

interface Given {
  readonly name: string
  readonly rawName: string
  readonly value?: string | undefined
  readonly inlineValue?: boolean | undefined
}

/** The options as typed, or what is wrong with them. */
const read = (given: ReadonlyArray<Given>, command: CommandName | null): Seen | string => {
  const allowed: ReadonlyArray<OptionName> = command === null ? global : optionsOf(command)
  const seen: Seen = { values: {}, flags: new Set() }
  for (const { name, rawName, value, inlineValue } of given) {
    if (!isOption(name)) return unknownOption(rawName, command, allowed)
    if (!allowed.includes(name)) return `${rawName} does not belong to ${command ?? "volumed"}${belongs(name)}`
    const option = optionOf(command, name)
    if (option.kind === "flag") {
      if (value !== undefined) return `${rawName} takes no value, found ${quote(value)}`
      seen.flags.add(name)
      continue
    }
    const looksLikeOption = value !== undefined && inlineValue !== true && value.length > 1 && value.startsWith("-")
    if (value === undefined || value === "" || looksLikeOption) return `${rawName} needs a value: ${option.value}`
    if (seen.values[name] !== undefined) return `${rawName} was given twice`
    seen.values[name] = value
  }
  return seen
}

const complete = (
  command: CommandName,
  positionals: ReadonlyArray<string>,
  seen: Seen,
  environment: Readonly<Record<string, string | undefined>>
): Parsed => {
  const wanted = commands[command].positionals
  const surplus = positionals[wanted.length]
  if (surplus !== undefined) return wrong(`${command}: unexpected argument ${quote(surplus)}`, null, command)
  const missing = wanted.find((positional, index) => positional.required && positionals[index] === undefined)
  if (missing !== undefined) return wrong(`${command}: ${missing.name} is missing`, null, command)
  for (const [index, { name, choices }] of wanted.entries()) {
    const word = positionals[index]
    if (choices === undefined || word === undefined || choices.includes(word)) continue
    const expected = `expected ${name} to be ${choices.join(" or ")}, found ${quote(word)}`
    return wrong(`${command}: ${expected}`, nearest(word, choices), command)
  }
  const absent = commands[command].required?.find((name) => seen.values[name] === undefined)
  if (absent !== undefined) return wrong(`${command}: ${flagText(command, absent)} is missing`, null, command)
  const output = seen.values.output ?? "table"
  if (output !== "table" && output !== "json" && output !== "yaml") {
    return wrong(`-o ${quote(output)} is unknown`, nearest(output, ["table", "json", "yaml"]), command)
  }
  const server = seen.values.server ?? (environment["VOLUMED_SERVER"] || "http://127.0.0.1:8090")
  if (!isHttpUrl(server)) {
    const key = seen.values.server === undefined ? "VOLUMED_SERVER" : "--server"
    return wrong(`${key}: expected a URL such as http://127.0.0.1:8090, found ${quote(server)}`, null, command)
  }
  return { _tag: "Run", invocation: { command, positionals, values: seen.values, flags: seen.flags, server, output } }
}

const isHttpUrl = (text: string): boolean => URL.canParse(text) && ["http:", "https:"].includes(new URL(text).protocol)

const unknownOption = (rawName: string, command: CommandName | null, allowed: ReadonlyArray<OptionName>): string => {
  const hint = nearest(rawName.replace(/^-+/u, ""), allowed)
  return `unknown flag ${rawName}${hint === null ? "" : `; did you mean --${hint}?`}${seeHelp(command)}`
}

const belongs = (name: OptionName): string => {
  const owners = names.filter((command) => commands[command].options.includes(name))
  return owners.length === 0 ? "" : `; it is a flag of ${owners.join(", ")}`
}

const wrong = (message: string, hint: string | null, command: CommandName | null = null): Parsed => ({
  _tag: "Wrong",
  message: `${message}${hint === null ? "" : `; did you mean ${hint}?`}${seeHelp(command)}`
})

const seeHelp = (command: CommandName | null): string =>
  `\n  see: volumed ${command === null ? "" : `${command} `}--help`

/** JSON's quoting: a control character in an argument must not reach the terminal as one. */
const quote = (text: string): string => JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text)

/** Milliseconds of `90s`, `10m`, `1h`, `250ms`; null when it is none of these. */
export const durationMs = (text: string): number | null => {
  const match = /^(\d{1,9}(?:\.\d{1,3})?)(ms|s|m|h)$/u.exec(text)
  if (match === null) return null
  const unit = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 }[match[2] as "ms" | "s" | "m" | "h"]
  return Math.round(Number(match[1]) * unit)
}
