import { Effect } from "effect"
import type { Invocation } from "./Arguments.ts"
import {
  choicesOf,
  type CommandName,
  commands,
  global,
  names,
  type Option,
  optionNames,
  optionOf,
  options,
  optionsOf
} from "./Commands.ts"
import { Output } from "./Output.ts"

/** The script that teaches a shell our command line, made from the same table that it is read by. */
export const completion = Effect.fn("Completion.completion")(function* (invocation: Invocation) {
  const output = yield* Output
  const shell = invocation.positionals[0]
  yield* output.result(shell === "fish" ? fish() : shell === "zsh" ? zsh() : bash())
  return "done" as const
})

/** What stands for a declared volume: its names come from the daemon, at the moment of the question. */
const isHandle = (positional: string): boolean => positional === "HANDLE" || positional === "NAME"

/** Declared names have no blanks and nothing that a shell would read (schema/Ids.ts `Name`). */
const declared = "volumed get 2>/dev/null | awk 'NR > 1 { print $1 }'"

const takesFile = ({ value }: Option): boolean => value === "FILE"
const takesDirectory = ({ value }: Option): boolean => value === "DIR"

/** `-o`, `--output`. */
const spellings = (name: string, { short }: Option): ReadonlyArray<string> => [
  ...(short === undefined ? [] : [`-${short}`]),
  `--${name}`
]

const firstPositional = (command: CommandName) => commands[command].positionals[0] ?? null

export const bash = (): string => {
  const valued = optionNames.filter((name) => options[name].kind === "value")
  const values = valued.map((name) => {
    const option: Option = options[name]
    const choices = choicesOf(option)
    const words = takesFile(option)
      ? '$(compgen -f -- "$current")'
      : takesDirectory(option)
        ? '$(compgen -d -- "$current")'
        : `$(compgen -W "${choices.join(" ")}" -- "$current")`
    return `    ${spellings(name, option).join("|")}) COMPREPLY=(${words}); return ;;`
  })
  const perCommand = names.map((command) => {
    const flags = optionsOf(command).flatMap((name) => spellings(name, options[name]))
    const positional = firstPositional(command)
    const words =
      positional === null ? "" : isHandle(positional.name) ? `$(${declared})` : (positional.choices ?? []).join(" ")
    return `    ${command}) flags="${flags.join(" ")}"; [[ $current == -* ]] || words="${words}" ;;`
  })
  return `# volumed completion for bash; load it with: source <(volumed completion bash)
_volumed() {
  local current=\${COMP_WORDS[COMP_CWORD]} previous=\${COMP_WORDS[COMP_CWORD-1]} command="" flags="" words="" word
  COMPREPLY=()
  case $previous in
${values.join("\n")}
  esac
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case $word in ${names.join("|")}) command=$word; break ;; esac
  done
  case $command in
${perCommand.join("\n")}
    *) flags="${global.flatMap((name) => spellings(name, options[name])).join(" ")}"; words="${names.join(" ")}" ;;
  esac
  [[ $current == -* ]] && words=$flags
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _volumed volumed
`
}

/** In single quotes, as every shell here reads them. */
const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`

/** For \`_arguments\`, where brackets and colons have a meaning. */
const plainText = (text: string): string => text.replaceAll(/[[\]:]/gu, (character) => `\\${character}`)

export const zsh = (): string => {
  const flag = (command: CommandName, name: (typeof optionNames)[number]): string => {
    const option = optionOf(command, name)
    const action = takesFile(option)
      ? "_files"
      : takesDirectory(option)
        ? "_files -/"
        : choicesOf(option).length > 0
          ? `(${choicesOf(option).join(" ")})`
          : " "
    const value = option.kind === "flag" ? "" : `:${plainText(option.value ?? "")}:${action}`
    const [first = "", second] = spellings(name, option)
    const about = `[${plainText(option.about)}]${value}`
    return second === undefined
      ? quoted(`${first}${about}`)
      : `'(${first} ${second})'{${first},${second}}${quoted(about)}`
  }
  const perCommand = names.map((command) => {
    const positional = firstPositional(command)
    const action =
      positional === null
        ? null
        : isHandle(positional.name)
          ? "_volumed_names"
          : `(${positional.choices?.join(" ") ?? ""})`
    const rest = action === null ? [] : [quoted(`1:${positional?.name ?? ""}:${action}`)]
    const lines = [...optionsOf(command).map((name) => flag(command, name)), ...rest]
    return `    ${command})\n      _arguments ${lines.join(" \\\n        ")}\n      ;;`
  })
  const list = names.map((command) => `    ${quoted(`${command}:${plainText(commands[command].summary)}`)}`)
  return `#compdef volumed
# volumed completion for zsh; load it with: source <(volumed completion zsh)
_volumed_names() {
  compadd -- \${(f)"$(${declared})"}
}
_volumed() {
  local -a commands
  commands=(
${list.join("\n")}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
${perCommand.join("\n")}
  esac
}
compdef _volumed volumed
`
}

export const fish = (): string => {
  const line = (...parts: ReadonlyArray<string>) => ["complete -c volumed", ...parts].join(" ")
  const flag = (condition: string, command: CommandName | null, name: (typeof optionNames)[number]): string => {
    const option = optionOf(command, name)
    const choices = choicesOf(option)
    const value = takesFile(option)
      ? ["-rF"]
      : takesDirectory(option)
        ? ["-xa", quoted("(__fish_complete_directories)")]
        : choices.length > 0
          ? ["-xa", quoted(choices.join(" "))]
          : ["-x"]
    const short = option.short === undefined ? [] : ["-s", option.short]
    const parts = ["-l", name, ...short, ...(option.kind === "flag" ? [] : value), "-d", quoted(option.about)]
    return line(...(condition === "" ? [] : ["-n", quoted(condition)]), ...parts)
  }
  const perCommand = names.flatMap((command) => {
    const seen = `__fish_seen_subcommand_from ${command}`
    const positional = firstPositional(command)
    const words =
      positional === null ? null : isHandle(positional.name) ? `(${declared})` : positional.choices?.join(" ")
    return [
      line("-n", "__fish_use_subcommand", "-a", command, "-d", quoted(commands[command].summary)),
      ...commands[command].options.map((name) => flag(seen, command, name)),
      ...(words ? [line("-n", quoted(seen), "-a", quoted(words))] : [])
    ]
  })
  return `# volumed completion for fish; load it with: volumed completion fish | source
complete -c volumed -f
${global.map((name) => flag("", null, name)).join("\n")}
${perCommand.join("\n")}
`
}
