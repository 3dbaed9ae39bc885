import { assert, describe, it } from "@effect/vitest"
import { Either, FastCheck } from "effect"
import * as Json from "../../src/Http/Json.ts"

const problemOf = (text: string) => Either.getOrNull(Either.flip(Json.parse(text)))

describe("JSON bodies", () => {
  it("are read as JSON.parse reads them", () => {
    const value = FastCheck.jsonValue({ maxDepth: 6 }).filter((json) => !JSON.stringify(json).includes("__proto__"))
    FastCheck.assert(
      FastCheck.property(value, FastCheck.nat(4), (json, indent) => {
        const text = JSON.stringify(json, null, indent)
        assert.deepStrictEqual(Either.getOrThrow(Json.parse(text)), JSON.parse(text))
      }),
      { numRuns: 500 }
    )
  })

  it("are refused where JSON.parse refuses them", () => {
    const pieces = FastCheck.array(
      FastCheck.constantFrom(
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"a"',
        '"b"',
        "1",
        "-",
        "01",
        "1.",
        "true",
        "nul",
        " ",
        "\n",
        "'"
      ),
      { maxLength: 9 }
    )
    let refused = 0
    FastCheck.assert(
      FastCheck.property(pieces, (parts) => {
        const text = parts.join("")
        const ours = Either.isRight(Json.parse(text))
        let theirs = true
        try {
          JSON.parse(text)
        } catch {
          theirs = false
          refused += 1
        }
        // Only a key that comes twice is refused by us alone.
        if (ours !== theirs) assert.match(problemOf(text)?.problem ?? "", /every key once/)
      }),
      { numRuns: 5000 }
    )
    assert.isAbove(refused, 100)
  })

  it("are refused for what JSON.parse lets pass: duplicate keys, __proto__, infinities, surrogates, depth, a million keys (X4)", () => {
    const texts: ReadonlyArray<readonly [string, RegExp]> = [
      ['{"a":1,"a":1}', /every key once, found "a" again/],
      ['{"a":1,"\\u0061":1}', /every key once/],
      ['{"\\u005f_proto__":1}', /no key __proto__/],
      ["[1e400]", /64 bits/],
      ["[-1e400]", /64 bits/],
      ['["\\ud800"]', /half of a surrogate pair/],
      ['["\\udc00\\ud800"]', /half of a surrogate pair/],
      ['["\\ud83d\\u0020\\ude00"]', /half of a surrogate pair/],
      ['{"\\udfff":1}', /half of a surrogate pair/],
      ["[".repeat(33) + "]".repeat(33), /32 levels/],
      [`{${Array.from({ length: 1_000_000 }, (_, index) => `"${index}":0`).join(",")}}`, /at most 1000 keys/],
      ['{"a":'.repeat(100_000), /32 levels/]
    ]
    for (const [text, problem] of texts) assert.match(problemOf(text)?.problem ?? "", problem)
    assert.isTrue(Either.isRight(Json.parse("[".repeat(32) + "]".repeat(32))))
    assert.strictEqual(Either.getOrThrow(Json.parse('"\\ud83d\\ude00 😀"')), "😀 😀")
    assert.deepStrictEqual(Either.getOrThrow(Json.parse('{"constructor":1,"toString":2}')), {
      constructor: 1,
      toString: 2
    })
  })

  it("are refused with the line and column", () => {
    assert.deepStrictEqual(problemOf('{\n  "a": 1,\n  "a": 2\n}'), {
      problem: 'expected every key once, found "a" again',
      line: 3,
      column: 3
    })
    assert.deepStrictEqual(problemOf('{"a": }'), { problem: 'expected a value, found "}"', line: 1, column: 7 })
    assert.match(problemOf("")?.problem ?? "", /end of the text/)
    assert.match(problemOf("{} {}")?.problem ?? "", /expected end of text/)
    assert.match(problemOf('"a\nb"')?.problem ?? "", /control characters/)
    assert.match(problemOf('"\\x41"')?.problem ?? "", /unknown escapes/)
  })

  it("may hold a text as long as a body may be", () => {
    const long = "x\\n".repeat(1_400_000)
    assert.strictEqual(Either.getOrThrow(Json.parse(`"${long}"`)), "x\n".repeat(1_400_000))
    const plain = "x".repeat(4_000_000)
    assert.strictEqual(Either.getOrThrow(Json.parse(`"${plain}"`)), plain)
  })
})
