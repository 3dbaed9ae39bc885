import { createHash, timingSafeEqual } from "node:crypto"
import { Clock, Context, Effect, Either, Layer } from "effect"
import { Misconfigured } from "../../schema/Errors.ts"
import * as File from "../Settings/File.ts"

export type Role = "read-only" | "read-write"

/** One line of the token file. */
export interface Token {
  readonly role: Role
  /** For the history and the log; `token-` and the start of the hash where the line names nobody. */
  readonly name: string
  /** SHA-256 of the token; the token itself is nowhere. */
  readonly digest: Buffer
}

/** Every one of them is compared with what is presented. */
const TOKENS_MAX = 16
/** 128 bits in base64. A shorter one can be guessed, whatever its hash. */
const CHARACTERS_MIN = 22
const CHARACTERS_MAX = 512
/** From a change of the file to its being seen, at most. */
const LOOK_MS = 1_000

const EXAMPLE = "read-write sha256:<64 hexadecimal digits> operator"

/** What may be presented as a bearer token (RFC 6750, section 2.1), where it is long enough. */
const isToken = (text: string) =>
  text.length >= CHARACTERS_MIN && text.length <= CHARACTERS_MAX && /^[A-Za-z0-9._~+/-]+=*$/u.test(text)

const digestOf = (text: string): Buffer => createHash("sha256").update(text).digest()

/** The tokens of a file's text, or everything that is wrong with it. Of a token in clear nothing is repeated. */
export const parse = (text: string): Either.Either<ReadonlyArray<Token>, ReadonlyArray<string>> => {
  const tokens: Array<Token> = []
  const problems: Array<string> = []
  for (const [index, raw] of text.split(/\r?\n/u).entries()) {
    const line = raw.trim()
    if (line === "" || line.startsWith("#")) continue
    const token = parseLine(line)
    if (typeof token === "string") problems.push(`line ${index + 1} ${token}`)
    else if (tokens.some(({ digest }) => digest.equals(token.digest)))
      problems.push(`line ${index + 1} holds a token a second time`)
    else tokens.push(token)
  }
  if (tokens.length > TOKENS_MAX) problems.push(`there are ${tokens.length} tokens, and at most ${TOKENS_MAX} may be`)
  if (tokens.length + problems.length === 0) problems.push("there is no token in it")
  return problems.length === 0 ? Either.right(tokens) : Either.left(problems)
}

/** A line's token, or what is wrong with it as the end of "line 3 …". */
const parseLine = (line: string): Token | string => {
  const words = line.split(/\s+/u)
  const role = words[0] === "read-only" || words[0] === "read-write" ? words[0] : null
  const [hash = "", name, ...rest] = role === null ? words : words.slice(1)
  const isHash = hash.startsWith("sha256:")
  const hex = /^sha256:([0-9a-fA-F]{64})$/u.exec(hash)?.[1]?.toLowerCase()
  const isName = name === undefined || (/^[A-Za-z0-9._@-]{1,64}$/u.test(name) && name !== "apply")
  if (!isHash && isToken(hash) && rest.length === 0 && isName)
    return inClear(role ?? "read-only", hash, name === undefined ? "" : ` ${name}`)
  if (role === null) return "does not begin with read-only or read-write"
  if (hex === undefined) return isHash ? "has a hash that is not of 64 hexadecimal digits" : "has no sha256:… as second"
  if (rest.length > 0 || !isName) return "has a name that is not 1-64 characters of A-Z a-z 0-9 . _ @ -"
  return { role, name: name ?? `token-${hex.slice(0, 8)}`, digest: Buffer.from(hex, "hex") }
}

const inClear = (role: Role, token: string, name: string): string =>
  `holds a token in clear; put instead: ${role} sha256:${digestOf(token).toString("hex")}${name}`

/**
 * The token that was presented, or null. All of them are compared, each in constant time and by hash, so that the time
 * tells nothing of any.
 */
export const find = (tokens: ReadonlyArray<Token>, presented: string): Token | null => {
  const digest = digestOf(presented)
  let found: Token | null = null
  for (const token of tokens) if (timingSafeEqual(token.digest, digest)) found = token
  return isToken(presented) ? found : null
}

/** Who may call: the token file as it is now. */
export class Tokens extends Context.Tag("volumed/Http/Tokens")<
  Tokens,
  {
    /** Null where none are asked for. */
    readonly current: Effect.Effect<ReadonlyArray<Token> | null>
    /** Why the file as it is now is not in force, without any of its contents; null when it is. */
    readonly problem: Effect.Effect<string | null>
  }
>() {}

/**
 * Reads the file at the start, where anything wrong with it is a failure, and looks at it again at most once a second.
 * A version that is wrong changes nothing: the one before stays in force, and the log says why.
 */
export const layer = (file: string | null): Layer.Layer<Tokens, Misconfigured> =>
  file === null
    ? Layer.succeed(Tokens, { current: Effect.succeed(null), problem: Effect.succeed(null) })
    : Layer.effect(Tokens, watching(file))

const watching = (file: string) =>
  Effect.gen(function* () {
    const first = yield* Either.mapLeft(
      read(file),
      (problems) =>
        new Misconfigured({
          problems: problems.map((problem) => ({ key: "VOLUMED_TOKEN_FILE", problem, example: EXAMPLE }))
        })
    )
    const state = { tokens: first, problems: "", at: yield* Clock.currentTimeMillis }
    const look = Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      if (Math.abs(now - state.at) < LOOK_MS) return
      state.at = now
      const found = read(file)
      const problems = Either.isLeft(found) ? found.left.join("; ") : ""
      if (Either.isRight(found)) state.tokens = same(state.tokens, found.right) ? state.tokens : found.right
      if (problems === state.problems) return
      state.problems = problems
      yield* problems === ""
        ? Effect.logInfo("the token file is in force again")
        : Effect.logError("the token file is wrong, the tokens before stay in force").pipe(
            Effect.annotateLogs({ file, problems })
          )
    })
    return Tokens.of({
      current: Effect.map(look, () => state.tokens),
      problem: Effect.map(look, () =>
        state.problems === "" ? null : "the token file is wrong, the tokens before stay in force; the log says why"
      )
    })
  })

const read = (file: string): Either.Either<ReadonlyArray<Token>, ReadonlyArray<string>> => {
  const exposure = File.exposure(file)
  if (exposure !== null) return Either.left([exposure])
  return Either.flatMap(
    Either.mapLeft(File.read(file), (problem) => [`${file} cannot be read: ${problem}`]),
    parse
  )
}

/** Equal tokens stay the same values: whoever keeps something beside one keeps it. */
const same = (a: ReadonlyArray<Token>, b: ReadonlyArray<Token>): boolean =>
  a.length === b.length &&
  a.every((token, index) => {
    const other = b[index]
    return (
      other !== undefined && token.role === other.role && token.name === other.name && token.digest.equals(other.digest)
    )
  })
