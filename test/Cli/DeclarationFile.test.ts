import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as DeclarationFile from "../../src/Cli/DeclarationFile.ts"

const decode = (text: string | Uint8Array) =>
  DeclarationFile.parse("f.yaml", typeof text === "string" ? new TextEncoder().encode(text) : text).pipe(
    Effect.flatMap(DeclarationFile.decode)
  )

/** Everything that is wrong with a text, one line each. */
const problems = (text: string | Uint8Array) => Effect.map(Effect.flip(decode(text)), (wrong) => wrong.message)

const volumes = (...lines: ReadonlyArray<string>) => ["volumes:", ...lines, ""].join("\n")

describe("a declaration file", () => {
  it.effect("is YAML or JSON", () =>
    Effect.gen(function* () {
      const yaml = yield* decode("set: s\n" + volumes("  - name: a", "    size: 2GiB", "    attached_to: appliance"))
      const json = yield* decode('{"set":"s","volumes":[{"name":"a","size":2147483648,"attached_to":"appliance"}]}')
      assert.deepStrictEqual(yaml, json)
      assert.strictEqual(yaml.volumes[0]?.spec.size, 2 * 1024 ** 3)
    })
  )

  const corpus: ReadonlyArray<readonly [string, string, string, string]> = [
    ["an unknown key", volumes("  - name: a", "    sizes: 2GiB"), "f.yaml:3:5", "did you mean size?"],
    ["an unknown key beside volumes", "volumes: []\nsets: x\n", "f.yaml:2:1", "did you mean set?"],
    ["a wrong type", volumes("  - name: a", "    export_wanted: maybe"), "f.yaml:3:5", "expected true or false"],
    ["a list that is none", "volumes: 3\n", "f.yaml:1:1", "expected a list, found 3"],
    [
      "a name with a newline",
      volumes('  - name: "a\\nb"', "    size: 2GiB"),
      "f.yaml:2:5",
      "starting with a letter or digit"
    ],
    ["a name with a path part", volumes("  - name: ../etc/passwd"), "f.yaml:2:5", "starting with a letter or digit"],
    ["a name twice", volumes("  - name: a", "  - name: a"), "f.yaml:3:5", "every name once"],
    ["a size below 1 GiB", volumes("  - name: a", "    size: 1023MiB"), "f.yaml:3:5", "at least 1 GiB"],
    ["a size beyond 2^53", volumes("  - name: a", "    size: 9007199254740993"), "f.yaml:3:5", "less than 2^53"],
    ["a decimal unit", volumes("  - name: a", "    size: 100GB"), "f.yaml:3:5", "write 100GiB"],
    ["an empty metadata value", volumes("  - name: a", '    metadata: {a.b: ""}'), "f.yaml:3:16", "1-255 characters"],
    ["a key written twice", volumes("  - name: a", "    size: 2GiB", "    size: 3GiB"), "f.yaml:4:5", "every key once"],
    ["an unclosed bracket", "volumes: [a\nb: c\n", "f.yaml:2:1", "not valid YAML"],
    ["a tab as indentation", "volumes:\n\t- name: a\n", "f.yaml:2:1", "not valid YAML"],
    ["two documents", "volumes: []\n---\nvolumes: []\n", "f.yaml:2:1", "multiple documents"],
    ["nothing at all", "", "f.yaml:1:1", "expected an object with volumes"],
    ["a prototype", '{"__proto__": {}, "volumes": []}', "f.yaml:1:1", "expected no key __proto__"],
    ["brackets without end", "[".repeat(1_000_000), "f.yaml:1:1", "levels of brackets"],
    ["indicators without end", "- ".repeat(200_000), "f.yaml:1:1", "nested too deeply"],
    [
      "aliases of aliases",
      [
        "a: &a [x,x,x,x,x,x,x,x]",
        ...[..."bcdefg"].map((k, i) => `${k}: &${k} [${`*${"abcdef"[i]},`.repeat(7)}x]`)
      ].join("\n"),
      "f.yaml:1:1",
      "alias"
    ]
  ]
  for (const [what, text, place, expectation] of corpus) {
    it.effect(`refuses ${what} and says where and what it expected`, () =>
      Effect.gen(function* () {
        const message = yield* problems(text)
        assert.include(message, `${place}: `)
        assert.include(message, expectation)
      })
    )
  }

  it.effect("names every problem at once, whole answers included", () =>
    Effect.gen(function* () {
      const message = yield* problems(
        volumes("  - name: a", "    size: 5", "    spiz: 1", "  - name: b", "    spec:", "      size: 6")
      )
      assert.includeMembers(
        message.split("\n").map((line) => line.split(": ")[0]),
        ["f.yaml:3:5", "f.yaml:4:5", "f.yaml:7:7"]
      )
    })
  )

  it.effect("refuses bytes that are no UTF-8", () =>
    Effect.map(problems(Uint8Array.of(0xff, 0xfe, 0x41)), (message) =>
      assert.include(message, "expected text in UTF-8")
    )
  )

  it.effect("stops reading at 4 MiB, however long the input goes on", () =>
    Effect.gen(function* () {
      let given = 0
      const endless = (async function* () {
        for (;;) {
          given += 65_536
          yield new Uint8Array(65_536)
        }
      })()
      const wrong = yield* Effect.flip(DeclarationFile.read("-", endless))
      assert.include(wrong.message, "standard input: larger than 4 MiB")
      assert.isAtMost(given, 4 * 1024 * 1024 + 65_536)
    })
  )

  it.effect("says which file cannot be read", () =>
    Effect.gen(function* () {
      const wrong = yield* Effect.flip(DeclarationFile.read("/nonexistent/volumes.yaml", process.stdin))
      assert.include(wrong.message, "/nonexistent/volumes.yaml: cannot be read: ENOENT: no such file or directory")
    })
  )
})
