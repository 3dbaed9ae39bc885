import { assert, describe, it } from "@effect/vitest"
import { execFileSync } from "node:child_process"
import * as Commands from "../../src/Cli/Commands.ts"
import * as Completion from "../../src/Cli/Completion.ts"

/** What bash offers for the last of these words; `volumed get` is played by a function. */
const offered = (line: string): ReadonlyArray<string> => {
  const words = line.split(" ")
  const script = `volumed() { printf 'NAME STATE\\nfirst Ready\\nsecond Ready\\n'; }
${Completion.bash()}
COMP_WORDS=(${words.map((word) => `'${word}'`).join(" ")}); COMP_CWORD=${words.length - 1}
_volumed
printf '%s\\n' "\${COMPREPLY[@]}"`
  const text = execFileSync("bash", ["--norc", "-c", script], { encoding: "utf8" })
  return text.split("\n").filter((word) => word !== "")
}

describe("completion", () => {
  it("knows every command and every flag in every shell", () => {
    for (const script of [Completion.bash(), Completion.zsh(), Completion.fish()]) {
      for (const name of Commands.names) assert.match(script, new RegExp(`\\b${name}\\b`, "u"))
      for (const name of Commands.optionNames) assert.match(script, new RegExp(`(?:--|-l )${name}\\b`, "u"))
    }
  })

  it("offers commands, their flags and their words in bash", () => {
    assert.deepStrictEqual(offered("volumed appl"), ["apply"])
    assert.includeMembers([...offered("volumed ")], ["apply", "wait", "maintenance"])
    assert.deepStrictEqual(offered("volumed apply --ta"), ["--take-over"])
    assert.deepStrictEqual(offered("volumed get --ta"), [])
    assert.deepStrictEqual(offered("volumed maintenance o"), ["on", "off"])
    assert.deepStrictEqual(offered("volumed get -o "), ["table", "json", "yaml"])
    assert.deepStrictEqual(offered("volumed delete x --policy re"), ["retain"])
  })

  it("offers declared names where a volume is meant, and nothing it cannot know", () => {
    assert.deepStrictEqual(offered("volumed explain "), ["first", "second"])
    assert.deepStrictEqual(offered("volumed -o json wait se"), ["second"])
    assert.deepStrictEqual(offered("volumed pause first --reason "), [])
    assert.deepStrictEqual(offered("volumed approve "), [])
  })

  it("offers files for a file", () => {
    assert.include(offered("volumed apply -f package"), "package.json")
  })

  it("quotes what a shell would read", () => {
    for (const script of [Completion.zsh(), Completion.fish()]) {
      const unquoted = script.replaceAll("'\\''", "").replaceAll(/'[^']*'/gu, "")
      assert.notInclude(unquoted, "'")
    }
    execFileSync("bash", ["-n"], { input: Completion.bash() })
  })
})
