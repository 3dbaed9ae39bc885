import { assert, describe, it } from "@effect/vitest"
import * as Arguments from "../../src/Cli/Arguments.ts"

const parse = (line: string, environment: Record<string, string> = {}) =>
  Arguments.parse(line === "" ? [] : line.split(" "), environment)

const wrong = (line: string, environment: Record<string, string> = {}): string => {
  const parsed = parse(line, environment)
  assert.strictEqual(parsed._tag, "Wrong", `${line} was accepted`)
  return parsed._tag === "Wrong" ? parsed.message : ""
}

const understood = (line: string, environment: Record<string, string> = {}): Arguments.Invocation => {
  const parsed = parse(line, environment)
  if (parsed._tag !== "Run") throw new Error(`${line}: ${JSON.stringify(parsed)}`)
  return parsed.invocation
}

describe("the command line", () => {
  it("understands flags before and after the command", () => {
    const invocation = understood("--server http://127.0.0.1:1 apply -f volumes.yaml --wait -o json")
    assert.strictEqual(invocation.command, "apply")
    assert.strictEqual(invocation.server, "http://127.0.0.1:1")
    assert.strictEqual(invocation.values.file, "volumes.yaml")
    assert.strictEqual(invocation.output, "json")
    assert.isTrue(invocation.flags.has("wait"))
    assert.isFalse(invocation.flags.has("yes"))
  })

  it("reads a lone - as standard input", () => {
    assert.strictEqual(understood("plan -f -").values.file, "-")
  })

  it("takes the server from VOLUMED_SERVER unless --server says otherwise", () => {
    const environment = { VOLUMED_SERVER: "http://10.0.0.1:8090" }
    assert.strictEqual(understood("get", environment).server, "http://10.0.0.1:8090")
    assert.strictEqual(understood("get --server http://127.0.0.1:2", environment).server, "http://127.0.0.1:2")
    assert.strictEqual(understood("get").server, "http://127.0.0.1:8090")
    assert.include(wrong("get", { VOLUMED_SERVER: "ftp://x" }), "VOLUMED_SERVER: expected a URL")
  })

  it("refuses an unknown flag and says which one was probably meant", () => {
    assert.include(wrong("apply -f x --prun"), "unknown flag --prun; did you mean --prune?")
    assert.include(wrong("apply -f x --zzzzzzzz"), "unknown flag --zzzzzzzz")
    assert.notInclude(wrong("apply -f x --zzzzzzzz"), "did you mean")
  })

  it("refuses a flag of another command and names its owner", () => {
    assert.include(wrong("get --prune"), "--prune does not belong to get; it is a flag of apply")
  })

  it("refuses an unknown command and says which one was probably meant", () => {
    assert.include(wrong("aply -f x"), 'unknown command "aply"; did you mean apply?')
  })

  it("refuses surplus and missing arguments", () => {
    assert.include(wrong("get a b"), 'get: unexpected argument "b"')
    assert.include(wrong("delete"), "delete: NAME is missing")
    assert.include(wrong("apply"), "apply: -f FILE is missing")
    assert.include(wrong("adopt 1"), "adopt: --name NAME is missing")
    assert.include(wrong(""), "which command?")
  })

  it("refuses a flag without its value, with one too many, and twice", () => {
    assert.include(wrong("apply -f"), "needs a value: FILE")
    assert.include(wrong("apply -f --yes"), "needs a value: FILE")
    assert.include(wrong("get --yes=please"), '--yes takes no value, found "please"')
    assert.include(wrong("apply -f a -f b"), "was given twice")
    assert.include(wrong("get -o jsno"), "did you mean json?")
  })

  it("never echoes a control character of an argument", () => {
    const parsed = Arguments.parse(["get", "a", "\u001b[2J"], {})
    assert.strictEqual(parsed._tag, "Wrong")
    assert.notInclude(JSON.stringify(parsed), "\u001b")
    assert.include(parsed._tag === "Wrong" ? parsed.message : "", "\\u001b")
  })

  it("shows help for every command, with all its flags", () => {
    const overview = parse("--help")
    assert.strictEqual(overview._tag, "Help")
    const commands = (overview._tag === "Help" ? overview.text : "").matchAll(/^ {2}([a-z]+)\b/gmu)
    const names = [...commands].map((match) => match[1] ?? "")
    assert.includeMembers(names, ["serve", "demo", "plan", "apply", "get", "explain", "drift", "ops", "delete"])
    for (const name of names) {
      const help = parse(`${name} --help`)
      assert.include(help._tag === "Help" ? help.text : "", `volumed ${name}: `)
      assert.include(help._tag === "Help" ? help.text : "", "--server URL")
      assert.deepStrictEqual(parse(`help ${name}`), help)
    }
  })

  it("reads times with a unit and nothing else", () => {
    assert.deepStrictEqual(["250ms", "90s", "10m", "1.5h"].map(Arguments.durationMs), [250, 90_000, 600_000, 5_400_000])
    assert.deepStrictEqual(["", "10", "m", "-1s", "1d", "1e3s"].map(Arguments.durationMs), [
      null,
      null,
      null,
      null,
      null,
      null
    ])
  })
})
