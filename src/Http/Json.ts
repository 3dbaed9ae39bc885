import { Either } from "effect"
import { DEPTH_MAX } from "../../schema/Document.ts"

/** Why a text is not acceptable JSON, with the place. */
export interface JsonProblem {
  readonly problem: string
  readonly line: number
  readonly column: number
}

/**
 * RFC 8259, strictly, and refusing what `JSON.parse` lets pass silently: a key twice in one object (the last one would
 * win), `__proto__`, half a surrogate pair (no UTF-8 text can hold one, so it could not be answered as it came), numbers that
 * a double cannot hold, and more nesting or keys than any document needs, which keeps this parser's work bounded.
 */
export const parse = (text: string): Either.Either<unknown, JsonProblem> => {
  const reader: Reader = { text, at: 0 }
  const value = readValue(reader, 0)
  if (isWrong(value)) return Either.left(place(text, value))
  skipSpace(reader)
  return reader.at === text.length ? Either.right(value) : Either.left(place(text, wrong(reader, "end of text")))
}

interface Reader {
  readonly text: string
  at: number
}

class Wrong {
  readonly at: number
  readonly problem: string
  constructor(at: number, problem: string) {
    this.at = at
    this.problem = problem
  }
}

const isWrong = (value: unknown): value is Wrong => value instanceof Wrong

const wrong = ({ text, at }: Reader, expected: string): Wrong =>
  new Wrong(
    at,
    `expected ${expected}, found ${at < text.length ? JSON.stringify(text.charAt(at)) : "the end of the text"}`
  )

const place = (text: string, { at, problem }: Wrong): JsonProblem => {
  const before = text.slice(0, at).split("\n")
  return { problem, line: before.length, column: (before.at(-1)?.length ?? 0) + 1 }
}

const match = (reader: Reader, pattern: RegExp): string | null => {
  pattern.lastIndex = reader.at
  const found = pattern.exec(reader.text)?.[0] ?? null
  if (found !== null) reader.at += found.length
  return found
}

const skipSpace = (reader: Reader) => void match(reader, /[ \t\n\r]*/y)

const take = (reader: Reader, character: string): boolean => {
  skipSpace(reader)
  if (reader.text.charAt(reader.at) !== character) return false
  reader.at += 1
  return true
}

const readValue = (reader: Reader, depth: number): unknown => {
  skipSpace(reader)
  switch (reader.text.charAt(reader.at)) {
    case "{":
      return depth >= DEPTH_MAX ? tooDeep(reader) : readObject(reader, depth + 1)
    case "[":
      return depth >= DEPTH_MAX ? tooDeep(reader) : readArray(reader, depth + 1)
    case '"':
      return readString(reader)
    default:
      return readScalar(reader)
  }
}

const tooDeep = (reader: Reader) => new Wrong(reader.at, `expected at most ${DEPTH_MAX} levels of nesting`)

const readScalar = (reader: Reader): unknown => {
  const start = reader.at
  const word = match(reader, /true|false|null/y)
  if (word !== null) return word === "null" ? null : word === "true"
  const digits = match(reader, /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y)
  if (digits === null) return wrong(reader, "a value")
  const number = Number(digits)
  return Number.isFinite(number) ? number : new Wrong(start, "expected a number that fits into 64 bits")
}

const readString = (reader: Reader): string | Wrong => {
  const start = reader.at
  const literal = match(reader, /"[^"\\\u0000-\u001f]*(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\u0000-\u001f]*)*"/y)
  if (literal === null)
    return new Wrong(start, "expected a text in quotes, without control characters or unknown escapes")
  // The pattern above is the grammar of a JSON string, so this only undoes the escapes.
  const value = String(JSON.parse(literal))
  return /\p{Surrogate}/u.test(value) ? new Wrong(start, "expected no half of a surrogate pair") : value
}

const readArray = (reader: Reader, depth: number): ReadonlyArray<unknown> | Wrong => {
  reader.at += 1
  const items: Array<unknown> = []
  if (take(reader, "]")) return items
  for (;;) {
    const item = readValue(reader, depth)
    if (isWrong(item)) return item
    items.push(item)
    if (take(reader, "]")) return items
    if (!take(reader, ",")) return wrong(reader, ", or ]")
  }
}

/** No object of the contract has a tenth of these. */
const KEYS_MAX = 1000

const readObject = (reader: Reader, depth: number): Readonly<Record<string, unknown>> | Wrong => {
  reader.at += 1
  const members: Record<string, unknown> = {}
  if (take(reader, "}")) return members
  for (let count = 1; ; count++) {
    if (count > KEYS_MAX) return new Wrong(reader.at, `expected at most ${KEYS_MAX} keys in one object`)
    const key = readKey(reader, members)
    if (isWrong(key)) return key
    if (!take(reader, ":")) return wrong(reader, ":")
    const value = readValue(reader, depth)
    if (isWrong(value)) return value
    members[key] = value
    if (take(reader, "}")) return members
    if (!take(reader, ",")) return wrong(reader, ", or }")
  }
}

const readKey = (reader: Reader, members: Readonly<Record<string, unknown>>): string | Wrong => {
  skipSpace(reader)
  const at = reader.at
  if (reader.text.charAt(at) !== '"') return wrong(reader, "a key in quotes")
  const key = readString(reader)
  if (isWrong(key)) return key
  if (key === "__proto__") return new Wrong(at, "expected no key __proto__")
  return Object.hasOwn(members, key) ? new Wrong(at, `expected every key once, found ${quoted(key)} again`) : key
}

const quoted = (key: string) => JSON.stringify(key.length > 60 ? `${key.slice(0, 60)}…` : key)
