import { commands, type CommandName, flagText, global, names, optionOf, type OptionName } from "./Commands.ts"

/** What a command does, or all of them: every word of it out of the table. */
export const text = (command: CommandName | null): string => (command === null ? overview() : commandHelp(command))

const overview = (): string => {
  const rows = names.map((name) => [usage(name), commands[name].summary] as const)
  return `volumed: declares what each volume should be, makes it so and keeps it so

Usage: volumed COMMAND [ARGUMENT] [FLAG…]

${columns(rows)}

Flags of every command:
${columns(global.map((name) => optionRow(null, name)))}

A token for the daemon is read from VOLUMED_TOKEN. NO_COLOR switches colours off.
Exit codes: 0 nothing to do or done, 1 error, 2 changes pending, 3 drift only, 4 held or blocked,
5 time-out, still converging.
`
}

const commandHelp = (name: CommandName): string => {
  const own = commands[name].options
  return `volumed ${name}: ${commands[name].summary}

Usage: volumed ${usage(name)} [FLAG…]

${commands[name].details}
${own.length === 0 ? "" : `\nFlags:\n${columns(own.map((option) => optionRow(name, option)))}\n`}
Flags of every command:
${columns(global.map((option) => optionRow(name, option)))}
`
}

const usage = (name: CommandName): string => {
  const { positionals, required = [] } = commands[name]
  const words = positionals.map((p) => {
    const word = p.choices === undefined ? p.name : p.choices.join("|")
    return p.required ? word : `[${word}]`
  })
  return [name, ...words, ...required.map((option) => flagText(name, option))].join(" ")
}

const optionRow = (command: CommandName | null, name: OptionName): readonly [string, string] => {
  const option = optionOf(command, name)
  const short = option.short === undefined ? "    " : `-${option.short}, `
  return [`${short}--${name}${option.value === undefined ? "" : ` ${option.value}`}`, option.about]
}

const columns = (rows: ReadonlyArray<readonly [string, string]>): string => {
  const width = Math.max(...rows.map(([left]) => left.length))
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`).join("\n")
}
