import { Data, Effect } from "effect"
import * as Document from "../../schema/Document.ts"
import { open } from "node:fs/promises"
import { isMap, isNode, isScalar, Lexer, LineCounter, parseDocument, visit, type Document as YamlDocument } from "yaml"
import { clean } from "./Output.ts"

/** A file of a hundred thousand declarations is smaller than this. */
const BYTES_MAX = 4 * 1024 * 1024
/** An alias repeats what is written once; a file that needs more than these is built to blow up memory. */
const ALIASES_MAX = 100
/** A declaration is five levels deep. */
const DEPTH_MAX = 64

/** What is wrong in a file, each with its place: printed whole, nothing is stored. */
export class FileWrong extends Data.TaggedError("FileWrong")<{ readonly problems: ReadonlyArray<string> }> {
  override get message() {
    return this.problems.join("\n")
  }
}

/** A file's value and, for every path in it, where that stands as `file:line:column`. */
export interface Located {
  readonly file: string
  readonly value: unknown
  readonly place: (path: ReadonlyArray<PropertyKey>) => string
}

/** Read YAML (JSON is YAML too) from a file, or from standard input when it is called `-`. */
export const read = (file: string, stdin: AsyncIterable<Uint8Array>): Effect.Effect<Located, FileWrong> =>
  (file === "-" ? fromStream(stdin) : fromFile(file)).pipe(
    Effect.flatMap((bytes) => parse(file === "-" ? "standard input" : file, bytes))
  )

const fromFile = (file: string): Effect.Effect<Uint8Array, FileWrong> =>
  Effect.scoped(
    Effect.acquireRelease(
      Effect.tryPromise({ try: () => open(file, "r"), catch: (cause) => unreadable(file, cause) }),
      (handle) => Effect.promise(() => handle.close())
    ).pipe(Effect.flatMap((handle) => fromStream(handle.createReadStream({ autoClose: false }), file)))
  )

const fromStream = (stream: AsyncIterable<Uint8Array>, file = "standard input"): Effect.Effect<Uint8Array, FileWrong> =>
  Effect.tryPromise({ try: () => collect(stream), catch: (cause) => unreadable(file, cause) }).pipe(
    Effect.filterOrFail(
      (bytes) => bytes.length <= BYTES_MAX,
      () => new FileWrong({ problems: [`${file}: larger than 4 MiB; split it into several files`] })
    )
  )

/** At most one byte block more than is allowed: an endless input ends here. */
const collect = async (stream: AsyncIterable<Uint8Array>): Promise<Uint8Array> => {
  const blocks: Array<Uint8Array> = []
  let length = 0
  for await (const block of stream) {
    blocks.push(block)
    length += block.length
    if (length > BYTES_MAX) break
  }
  return Buffer.concat(blocks)
}

const unreadable = (file: string, cause: unknown): FileWrong => {
  const why = cause instanceof Error ? cause.message.replace(/, .*$/u, "") : String(cause)
  return new FileWrong({ problems: [`${file}: cannot be read: ${why}`] })
}

const example = `  example:
    volumes:
      - name: pgtest2-disk-0
        size: 100GiB
        attached_to: appliance
        export_wanted: true`

export const parse = (file: string, bytes: Uint8Array): Effect.Effect<Located, FileWrong> =>
  Effect.gen(function* () {
    const text = yield* Effect.try({
      try: () => new TextDecoder("utf-8", { fatal: true }).decode(bytes),
      catch: () => new FileWrong({ problems: [`${file}:1:1: expected text in UTF-8`] })
    })
    const lines = new LineCounter()
    const at = (offset: number): string => {
      const { line, col } = lines.linePos(offset)
      return `${file}:${Math.max(1, line)}:${Math.max(1, col)}`
    }
    const wrong = (offset: number, what: string) =>
      new FileWrong({ problems: [`${at(offset)}: ${clean(what)}`, example] })
    const notYaml = (cause: unknown) => wrong(0, `not valid YAML: ${said(cause)}`)
    const deep = yield* Effect.try({ try: () => tooDeep(text), catch: notYaml })
    if (deep) return yield* wrong(0, `expected at most ${DEPTH_MAX} levels of brackets`)
    const document = yield* Effect.try({
      // Keys are compared below: the reader compares each with each, which takes minutes for a hundred thousand.
      try: () => parseDocument(text, { lineCounter: lines, prettyErrors: false, uniqueKeys: false, stringKeys: true }),
      catch: notYaml
    })
    const problem = document.errors[0] ?? document.warnings[0]
    if (problem !== undefined) return yield* wrong(problem.pos[0], `not valid YAML: ${problem.message}`)
    const twin = yield* Effect.try({ try: () => duplicateKey(document), catch: notYaml })
    if (twin !== null)
      return yield* wrong(twin.offset, `expected every key once, found ${JSON.stringify(twin.key)} again`)
    const value: unknown = yield* Effect.try({
      try: () => document.toJS({ maxAliasCount: ALIASES_MAX }),
      catch: notYaml
    })
    return { file, value, place: (path) => at(offsetOf(document, path)) }
  })

/** The reader recurses: a stack that ran out means a file nested beyond reason, wherever the error surfaced. */
const said = (cause: unknown): string => {
  const message = cause instanceof Error ? cause.message : String(cause)
  return message.includes("call stack") ? "nested too deeply" : message
}

/**
 * Whether brackets nest deeper than any declaration. Asked before the YAML reader sees the text, which recurses as deep
 * as it is told to and takes long to fail.
 */
const tooDeep = (text: string): boolean => {
  let depth = 0
  for (const lexeme of new Lexer().lex(text)) {
    if (lexeme === "[" || lexeme === "{") depth++
    else if (lexeme === "]" || lexeme === "}") depth--
    if (depth > DEPTH_MAX) return true
  }
  return false
}

const duplicateKey = (document: YamlDocument.Parsed): { readonly key: string; readonly offset: number } | null => {
  let found: { readonly key: string; readonly offset: number } | null = null
  visit(document, {
    Map: (_, map) => {
      const seen = new Set<string>()
      for (const { key } of map.items) {
        const text = isScalar(key) ? String(key.value) : ""
        if (seen.has(text)) found = { key: text, offset: isNode(key) ? (key.range?.[0] ?? 0) : 0 }
        if (found !== null) return visit.BREAK
        seen.add(text)
      }
      return undefined
    }
  })
  return found
}

/** The declarations of a file, or everything that is wrong with them, each with its place. Nothing is sent. */
export const decode = (located: Located): Effect.Effect<Document.Document, FileWrong> =>
  Document.decodeFile(located.value).pipe(
    Effect.mapError((refused) => new FileWrong({ problems: problemsAt(located, refused.errors) }))
  )

/** Problems as the server or the decoder names them, at the place where the file says so. */
export const problemsAt = (located: Located, problems: ReadonlyArray<Document.Problem>): ReadonlyArray<string> =>
  problems.map(({ index, name, field, problem }) => {
    const inside = field === null ? [] : fieldPath(field)
    const entry = index ?? indexOf(located.value, name)
    const path = entry === null ? inside : ["volumes", entry, ...inside]
    const subject = [name, field].filter((part) => part !== null).map(clean)
    return `${located.place(path)}: ${subject.length === 0 ? "" : `${subject.join(": ")}: `}${clean(problem)}`
  })

/** A problem of one volume alone may name it without its place in a list. */
const indexOf = (value: unknown, name: string | null): number | null => {
  const volumes = isRecord(value) ? value["volumes"] : null
  const index = Array.isArray(volumes) ? volumes.findIndex((entry) => isRecord(entry) && entry["name"] === name) : -1
  return name === null || index < 0 ? null : index
}

const isRecord = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value)

/** Only these two have members of their own; a key of `metadata` may itself contain dots. */
const fieldPath = (field: string): ReadonlyArray<string> => {
  const match = /^(metadata|paused)\.(.*)$/su.exec(field)
  return match === null ? [field] : [match[1] ?? "", match[2] ?? ""]
}

/**
 * The deepest part of the path that is written in the file: a missing key is reported at the map that lacks it, a key
 * that should not be there at the key itself.
 */
const offsetOf = (document: YamlDocument.Parsed, path: ReadonlyArray<PropertyKey>): number => {
  for (let length = path.length; length > 0; length--) {
    const part = path.slice(0, length)
    // A file may hold whole answers, whose members stand one level lower.
    const offset = written(document, part) ?? written(document, part.toSpliced(2, 0, "spec"))
    if (offset !== null) return offset
  }
  return document.contents?.range?.[0] ?? 0
}

const written = (document: YamlDocument.Parsed, path: ReadonlyArray<PropertyKey>): number | null => {
  const last = path.at(-1)
  const parent = path.length === 1 ? document.contents : document.getIn(path.slice(0, -1), true)
  if (isMap(parent)) {
    const pair = parent.items.find((item) => isScalar(item.key) && item.key.value === last)
    return isNode(pair?.key) && pair.key.range ? pair.key.range[0] : null
  }
  const node = document.getIn(path, true)
  return isNode(node) && node.range ? node.range[0] : null
}
