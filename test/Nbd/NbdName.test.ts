import { assert, describe, it } from "@effect/vitest"
import { FastCheck as fc } from "effect"
import * as NbdName from "../../schema/NbdName.ts"

const latin1 = (text: string) => Buffer.from(text, "utf8").toString("latin1")

describe("a name's text", () => {
  it("keeps the bytes, whatever they are, and has no more characters than they", () => {
    const piece = fc.oneof(
      fc.string({ unit: "binary", maxLength: 4 }).map(latin1),
      fc.uint8Array({ maxLength: 6 }).map((bytes) => Buffer.from(bytes).toString("latin1")),
      fc.constantFrom(
        "\xe9",
        "\xc3\xa9",
        "\xef\xbb\xbf",
        "\xef\x9f\xa9",
        "\xed\xa0\x80",
        "\xc0\xaf",
        "\xf4\x90\x80\x80",
        "a b"
      )
    )
    const seen = { foreign: 0, utf8: 0 }
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 6 }), (pieces) => {
        const bytes = pieces.join("")
        const text = NbdName.textOf(bytes)
        assert.strictEqual(NbdName.bytesOf(text), bytes)
        assert.isAtMost(text.length, bytes.length)
        seen[/[\uf780-\uf7ff]/.test(text) ? "foreign" : "utf8"]++
        // What a table or an answer takes: no half of a surrogate pair.
        assert.strictEqual(Buffer.from(text, "utf8").toString("utf8"), text)
      }),
      { numRuns: 3000, seed: 4 }
    )
    assert.isAbove(seen.foreign, 500)
    assert.isAbove(seen.utf8, 100)
  })

  it("is what it was written as, where that is UTF-8, and told apart where it is not", () => {
    for (const text of ["migration-vm-Büro Nord", "名前", "a\\xE9", "%E9", "😀"]) {
      assert.strictEqual(NbdName.textOf(latin1(text)), text)
      assert.strictEqual(NbdName.bytesOf(text), latin1(text))
    }
    assert.notStrictEqual(NbdName.textOf("caf\xe9"), NbdName.textOf("caf\xc3\xa9"))
    assert.strictEqual(NbdName.textOf("caf\xc3\xa9"), "café")
  })
})

describe("a name that somebody else chose", () => {
  it.each([
    "migration-vm-PGTEST1",
    " my Disk ",
    "../old",
    "Generic",
    "a=b",
    "#a",
    "%s",
    "é",
    "x".repeat(255),
    "\uf7e9",
    "😀"
  ])("may stay as it is: %j", (name) => assert.isNull(NbdName.claimProblem(name)))

  it.each([
    "",
    "x".repeat(256),
    "é".repeat(128),
    "a\nb",
    "a\0",
    "a]",
    "[a",
    "\x7f",
    "\u0085",
    "generic",
    NbdName.SENTINEL,
    `gen-${"0".repeat(32)}`
  ])("cannot: %j (N14, S21)", (name) => assert.isNotNull(NbdName.claimProblem(name)))

  it("cannot be half a character, which no file can hold", () => {
    assert.isNotNull(NbdName.claimProblem("a\ud800"))
  })
})
