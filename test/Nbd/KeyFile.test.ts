import { assert, describe, it } from "@effect/vitest"
import { FastCheck as fc } from "effect"
import { readdirSync, readFileSync } from "node:fs"
import * as KeyFile from "../../schema/KeyFile.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as GLib from "./GLib.ts"

/** Pieces that files are made of, and what somebody would slip into one. */
const pieces: ReadonlyArray<string> = [
  ..."[]=#; \t\v\f\r\n\0\\'\"%$`\x01\x7f\x80\x85\xa0\xc3\xe9\xff".split(""),
  "\r\n",
  "\n\n",
  "\xef\xbb\xbf",
  "\xe2\x80\xa8",
  "\xc3\xa9",
  "\xc0\xaf",
  "\xed\xa0\x80",
  "[generic]\n",
  "[a]\n",
  "[a]",
  "[ b ]\t\n",
  "k=v\n",
  " key = value \n",
  "k[de]=w\n",
  "k[\xc3\xa9]=w\n",
  "k[",
  "]=w\n",
  "d e",
  "de_DE.utf8@x-1",
  "# comment\n",
  "prerun",
  "prerun=id\n",
  "exportname=/x\n",
  "readonly = true\n",
  "port=10 \n",
  "n=+12x\n",
  "x=\\s\\n\\t\\r\\\\\n",
  "x=\\d\n",
  "x=a\\\n",
  "Encoding=UTF-8\n",
  "Encoding=latin1\n",
  "$(id)",
  "../"
]

/** The same texts in every run: half of them made of pieces, a quarter whole files with something put in, a quarter bytes. */
const corpus = (size: number): ReadonlyArray<string> => {
  const made = fc.array(fc.constantFrom(...pieces), { maxLength: 14 }).map((parts) => parts.join(""))
  const files = readdirSync("fixtures/nbd").map((name) => readFileSync(`fixtures/nbd/${name}`, "latin1"))
  const spoilt = fc.tuple(fc.constantFrom(...files), fc.nat(), fc.nat(8), made).map(([file, at, cut, more]) => {
    const from = at % (file.length + 1)
    return file.slice(0, from) + more + file.slice(from + cut)
  })
  const begun = fc.tuple(fc.constantFrom("[generic]\n", "[a]\n"), made).map((parts) => parts.join(""))
  const bytes = fc.uint8Array({ maxLength: 40 }).map((raw) => Buffer.from(raw).toString("latin1"))
  return fc.sample(fc.oneof(made, begun, begun, spoilt, bytes), { numRuns: size, seed: 5 })
}

const groupsOf = (text: string) => {
  const read = KeyFile.read(text)
  return read._tag === "Refused" ? null : [...read.groups].map(([name, keys]) => [name, [...keys]] as const)
}

/** What `NbdConfig`, which keeps every byte, makes of the same text. */
const sectionsOf = (text: string) => {
  const parsed = NbdConfig.parse(text)
  if (parsed._tag === "Malformed") return null
  const { sections } = parsed.document
  const names = [...new Set(sections.map(({ name }) => name))]
  return names.map((name) => {
    const pairs = sections.filter((one) => one.name === name).flatMap((one) => one.pairs)
    return [name, [...new Map(pairs.map(({ key, value }) => [key, value]))]] as const
  })
}

describe("a key file, by GLib's rules", () => {
  it.each([
    ["", []],
    ["# a\n\n  # b\n", []],
    ["[a]\nk=v", [["a", [["k", "v"]]]]],
    ["[a]\n k \t= v \n", [["a", [["k", "v "]]]]],
    ["[ a ]\t \nk=v\n", [[" a ", [["k", "v"]]]]],
    [
      "[a]\nk=v # no comment\n;l=1\n",
      [
        [
          "a",
          [
            ["k", "v # no comment"],
            [";l", "1"]
          ]
        ]
      ]
    ],
    [
      "[a]\nk=1\n[b]\n[a]\nk=2\n",
      [
        ["a", [["k", "2"]]],
        ["b", []]
      ]
    ],
    ["[a]\r\nk=v\r\n", [["a", [["k", "v"]]]]],
    ["[a]\nk=v\r", [["a", [["k", "v\r"]]]]],
    [
      "[a]\nk==v\nl=\n",
      [
        [
          "a",
          [
            ["k", "=v"],
            ["l", ""]
          ]
        ]
      ]
    ],
    ["[a]\nk[de]=v\n", [["a", [["k[de]", "v"]]]]],
    [
      "[b]\n[a]\nEncoding=latin1\n",
      [
        ["b", []],
        ["a", [["Encoding", "latin1"]]]
      ]
    ]
  ])("is read from %j", (text, groups) => {
    assert.deepStrictEqual(groupsOf(text), groups as never)
  })

  it.each([
    ["k=v\n", 1],
    ["\xef\xbb\xbf[a]\n", 1],
    ["[a]\nno sign\n", 2],
    ["[a]\n=v\n", 2],
    ["[a\n", 1],
    ["[a]]\n", 1],
    ["[]\n", 1],
    ["[a\t]\n", 1],
    ["[a]\r", 1],
    ["\v[a]\n", 1],
    ["[a]\nk]=v\n", 2],
    ["[a]\nk[d e]=v\n", 2],
    ["[a]\nk [de]=v\n", 2],
    ["[a]\nk[\xe9]=v\n", 2],
    ["[a]\nEncoding=latin1\n", 2],
    ["[a]\nk=\0\n", 2],
    ["[a]\nk=\u2028\n", 2]
  ])("is not read from %j", (text, line) => {
    const read = KeyFile.read(text)
    assert.strictEqual(read._tag === "Refused" ? read.line : 0, line)
  })

  it.each([
    ["\\sa\\n\\t\\r\\\\n", " a\n\t\r\\n"],
    ["\xc3\xa9", "\xc3\xa9"],
    ["a\\", null],
    ["a\\d", null],
    ["\xe9", null],
    ["\xed\xa0\x80", null]
  ])("gives a value out as a string: %j", (value, string) => assert.strictEqual(KeyFile.stringOf(value), string))
})

describe("two readers of one grammar", () => {
  it("agree on every text, however hostile: what is one file for the one is the same file for the other (X2, S21)", () => {
    const tally = { read: 0, refused: 0, keys: 0 }
    for (const text of corpus(40_000)) {
      // The one that keeps every byte passes over a mark that the other, as GLib, takes for part of a line.
      if (text.startsWith("\xef\xbb\xbf")) continue
      const groups = groupsOf(text)
      assert.deepStrictEqual(sectionsOf(text), groups, JSON.stringify(text))
      if (groups === null) tally.refused++
      else tally.read++
      tally.keys += groups?.flatMap(([, keys]) => keys).length ?? 0
    }
    assert.isAbove(Math.min(tally.read, tally.refused, tally.keys), 4_000, JSON.stringify(tally))
  })

  it("agree with GLib itself, in groups, keys and values (X2, S21)", () => {
    // What follows a NUL GLib does not see, so that both refuse a file that holds one.
    const texts = corpus(20_000).filter((text) => !text.includes("\0"))
    const verdicts = GLib.read(texts)
    let values = 0
    for (const [index, verdict] of (verdicts ?? []).entries()) {
      const text = texts[index] ?? ""
      const groups = groupsOf(text)
      if (verdict === "refused") {
        assert.isNull(groups, JSON.stringify(text))
        continue
      }
      const raw = verdict.map(([name, keys]) => [name, keys.map(([key, { raw }]) => [key, raw])])
      assert.deepStrictEqual(groups, raw as never, JSON.stringify(text))
      for (const [, { raw, string }] of verdict.flatMap(([, keys]) => keys)) {
        assert.strictEqual(KeyFile.stringOf(raw), string, JSON.stringify(raw))
        values++
      }
    }
    assert.isTrue(verdicts === null || values > 4_000, String(values))
  })

  it("know a true, a number and a string when they see one, as GLib does (N2)", () => {
    const value = fc.array(
      fc.constantFrom(..."01+-trufalse9x. \t\v\f\r\\ns\xe9\xc3\xa9".split(""), "true", "false", "2147483648"),
      {
        maxLength: 5
      }
    )
    const values = fc.sample(value, { numRuns: 8_000, seed: 6 }).map((parts) => parts.join(""))
    const verdicts = GLib.read(values.map((one) => `[generic]\nv=${one}\n`))
    const accepts = (key: string, one: string): boolean => {
      const parsed = NbdConfig.parse(`[generic]\n[x]\nexportname=/x\n${key}=${one}\n`)
      return parsed._tag === "Parsed" && NbdConfig.refusal(parsed.document) === null
    }
    const seen = { boolean: 0, int: 0, long: 0, string: 0 }
    for (const [index, verdict] of (verdicts ?? []).entries()) {
      const one = values[index] ?? ""
      const is = verdict === "refused" ? assert.fail(one) : (verdict[0]?.[1][0]?.[1] ?? assert.fail(one))
      assert.strictEqual(accepts("readonly", one), is.boolean !== null, `readonly=${JSON.stringify(one)}`)
      assert.strictEqual(accepts("maxconnections", one), is.int !== null, `maxconnections=${JSON.stringify(one)}`)
      assert.strictEqual(accepts("filesize", one), is.long !== null, `filesize=${JSON.stringify(one)}`)
      assert.strictEqual(accepts("prerun", one), is.string !== null, `prerun=${JSON.stringify(one)}`)
      for (const kind of ["boolean", "int", "long", "string"] as const) if (is[kind] !== null) seen[kind]++
    }
    assert.isTrue(verdicts === null || Object.values(seen).every((count) => count > 30), JSON.stringify(seen))
  })
})
