import { readFileSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { Effect, FastCheck as fc } from "effect"
import * as Site from "./Site.ts"

/**
 * Requests made from the document alone, right and wrong ones, are sent to a whole daemon on a sandbox. Whatever it is
 * asked, it answers as the document says: with a documented status, and a body that its schema describes.
 */
const SEED = 20_260_301
const REQUESTS = 2_500

interface Schema {
  readonly $ref?: string
  readonly anyOf?: ReadonlyArray<Schema>
  readonly enum?: ReadonlyArray<unknown>
  readonly type?: string
  readonly pattern?: string
  readonly minLength?: number
  readonly maxLength?: number
  readonly minimum?: number
  readonly maximum?: number
  readonly exclusiveMinimum?: number
  readonly items?: Schema
  readonly minItems?: number
  readonly maxItems?: number
  readonly properties?: Readonly<Record<string, Schema>>
  readonly patternProperties?: Readonly<Record<string, Schema>>
  readonly required?: ReadonlyArray<string>
  readonly additionalProperties?: boolean | Schema
  readonly allOf?: ReadonlyArray<Schema>
}

interface Response {
  readonly $ref?: string
  readonly content?: Readonly<Record<string, { readonly schema: Schema }>>
}

interface Parameter {
  readonly name: string
  readonly in: "path" | "query" | "header"
  readonly required: boolean
  readonly schema: Schema
}

interface Operation {
  readonly operationId: string
  readonly parameters: ReadonlyArray<Parameter>
  readonly requestBody?: { readonly content: Readonly<Record<string, { readonly schema: Schema }>> }
  readonly responses: Readonly<Record<string, Response>>
}

const document = JSON.parse(readFileSync(new URL("../../schema/openapi.json", import.meta.url), "utf8")) as {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components: {
    readonly schemas: Readonly<Record<string, Schema>>
    readonly responses: Readonly<Record<string, Response>>
  }
}

const last = (reference: string) => reference.slice(reference.lastIndexOf("/") + 1)
const named = (reference: string): Schema =>
  document.components.schemas[last(reference)] ?? assert.fail(`${reference} leads nowhere`)

/** Every way in which a value is not what the schema says. Keys and keywords that it does not know are wrong, too. */
const problems = (schema: Schema, value: unknown, at = "body"): ReadonlyArray<string> => {
  if (schema.$ref !== undefined) return problems(named(schema.$ref), value, at)
  if (schema.anyOf !== undefined) {
    const each = schema.anyOf.map((one) => problems(one, value, at))
    return each.some((found) => found.length === 0) ? [] : [`${at}: none of ${each.length}`, ...each.flat().slice(0, 8)]
  }
  const refined = (schema.allOf ?? []).flatMap((one) => problems(one, value, at))
  if (refined.length > 0) return refined
  if (schema.enum !== undefined && !schema.enum.includes(value)) return [`${at}: not of the enum`]
  switch (schema.type) {
    case undefined:
      return []
    case "null":
      return value === null ? [] : [`${at}: not null`]
    case "boolean":
      return typeof value === "boolean" ? [] : [`${at}: no boolean`]
    case "integer":
    case "number":
      return numberProblems(schema, value, at)
    case "string":
      return stringProblems(schema, value, at)
    case "array":
      if (!Array.isArray(value)) return [`${at}: no array`]
      return value.flatMap((item, index) => problems(schema.items ?? {}, item, `${at}[${index}]`))
    case "object":
      return objectProblems(schema, value, at)
    default:
      return [`${at}: a type that this test does not know: ${schema.type}`]
  }
}

const numberProblems = ({ type, minimum, maximum }: Schema, value: unknown, at: string): ReadonlyArray<string> => {
  if (typeof value !== "number" || (type === "integer" && !Number.isSafeInteger(value))) return [`${at}: no ${type}`]
  return value < (minimum ?? -Infinity) || value > (maximum ?? Infinity) ? [`${at}: out of range`] : []
}

const stringProblems = ({ pattern, minLength, maxLength }: Schema, value: unknown, at: string) => {
  if (typeof value !== "string") return [`${at}: no string`]
  if (value.length < (minLength ?? 0) || value.length > (maxLength ?? Infinity)) return [`${at}: length`]
  return pattern === undefined || new RegExp(pattern, "u").test(value) ? [] : [`${at}: does not match ${pattern}`]
}

const objectProblems = (schema: Schema, value: unknown, at: string): ReadonlyArray<string> => {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return [`${at}: no object`]
  const { properties = {}, required = [], additionalProperties = true } = schema
  const missing = required.filter((key) => !Object.hasOwn(value, key)).map((key) => `${at}.${key}: missing`)
  const wrong = Object.entries(value).flatMap(([key, member]) => {
    const own = Object.hasOwn(properties, key) ? properties[key] : undefined
    if (own !== undefined) return problems(own, member, `${at}.${key}`)
    if (additionalProperties === false) return [`${at}.${key}: not documented`]
    return additionalProperties === true ? [] : problems(additionalProperties, member, `${at}.${key}`)
  })
  return [...missing, ...wrong]
}

const NAMES = ["disk-a", "disk-b", "disk-c"]
const VMS = ["8a4400e5-c92a-4bc4-8bff-4b6b0b6a018c", "d1e7a9f0-6f0e-4f5e-9a55-0b6f0b1f7a01"]

/** What there is in the sandbox, so that right requests are not all about things that do not exist. */
interface Known {
  readonly volumes: ReadonlyArray<string>
  readonly operations: ReadonlyArray<string>
}

const pools = (known: Known): Readonly<Record<string, ReadonlyArray<string>>> => ({
  name: NAMES,
  id: [...known.volumes, ...VMS, ...known.operations],
  volume_id: known.volumes,
  vm_id: VMS,
  test_vm_id: VMS,
  oma_vm_id: VMS,
  attached_to: [...VMS, "appliance", "none"],
  disk_offering_id: ["c813c642-d946-49e1-9289-c616dd70206a"],
  zone_id: ["057e86db-c726-4d8c-ab1f-75c5f55d1881"],
  size: ["1GiB", "1Gi"],
  path: ["/dev/vdb", "vdb", "/dev/disk/by-id/virtio-c6ef61d1-300f-442a-8"],
  limit: ["1", "2", "1000"],
  // Answers that are held back are held back for a moment only.
  wait: ["1ms", "Ready:True", "Attached:False"],
  timeout: ["1ms", "10ms"],
  dry_run: ["true", "false"],
  policy: ["forget", "retain"],
  paused: ["true", "false"],
  removed: ["true", "false"],
  unmanaged: ["true", "false"],
  condition: ["Ready:True", "Exported:False"],
  "if-match": ["*", '"1"', '"2"'],
  "if-none-match": ["*"],
  "idempotency-key": Array.from({ length: 200 }, (_, n) => `key-${n}`),
  "volumed-actor": ["tester"],
  status: ["pending", "completed"],
  type: ["attach", "create"],
  since: ["2020-01-01T00:00:00Z"],
  until: ["2099-01-01T00:00:00Z"],
  after: ["0", "1"],
  "last-event-id": ["0", "1"]
})

/** Text that is never right where a form is asked for, and must never be taken for something else. */
const junk = fc.constantFrom(
  "",
  " ",
  "../../etc/passwd",
  "%2e%2e%2f",
  "a b",
  "\u{1f4be}",
  "-1",
  "1e400",
  "null",
  "'; DROP TABLE declarations; --",
  "<script>",
  "{}",
  "x".repeat(700),
  "00000000-0000-0000-0000-000000000000"
)

const text = (pool: ReadonlyArray<string> | undefined, schema: Schema): fc.Arbitrary<string> => {
  if (pool !== undefined && pool.length > 0) return fc.constantFrom(...pool)
  return schema.pattern === undefined
    ? fc.string({ minLength: schema.minLength ?? 0, maxLength: Math.min(schema.maxLength ?? 12, 12) })
    : fc.stringMatching(new RegExp(schema.pattern))
}

/** Values that the schema describes; `key` is the member they are for. */
const valid = (schema: Schema, known: Known, key = ""): fc.Arbitrary<unknown> => {
  if (schema.$ref !== undefined) return valid(named(schema.$ref), known, key)
  if (schema.anyOf !== undefined) return fc.oneof(...schema.anyOf.map((one) => valid(one, known, key)))
  if (schema.enum !== undefined) return fc.constantFrom(...schema.enum)
  switch (schema.type) {
    case "null":
      return fc.constant(null)
    case "boolean":
      return fc.boolean()
    case "integer":
    case "number":
      return fc.constant(1024 ** 3)
    case "string":
      return text(pools(known)[key], schema)
    case "array":
      return fc.array(valid(schema.items ?? {}, known, key), { maxLength: 3 })
    case "object":
      return object(schema, known)
    default:
      return fc.jsonValue({ maxDepth: 1 })
  }
}

/**
 * The required members and few of the others: all that is optional at once contradicts itself more often than not. A
 * size is among them, for nothing is created without.
 */
const few = <A>(members: Readonly<Record<string, fc.Arbitrary<A>>>, required: ReadonlyArray<string>) => {
  const always = Object.keys(members).filter((key) => required.includes(key) || key === "size")
  const others = Object.keys(members).filter((key) => !always.includes(key))
  return fc.shuffledSubarray(others, { maxLength: Math.min(2, others.length) }).chain((optional) => {
    const chosen = Object.entries(members).filter(([key]) => always.includes(key) || optional.includes(key))
    return fc.record(Object.fromEntries(chosen))
  })
}

const object = ({ properties = {}, required = [], additionalProperties }: Schema, known: Known) => {
  const members = Object.entries(properties).map(([key, schema]) => [key, valid(schema, known, key)] as const)
  if (typeof additionalProperties !== "object" || members.length > 0) return few(Object.fromEntries(members), required)
  return fc.dictionary(fc.stringMatching(/^[a-z]{1,8}$/), valid(additionalProperties, known), { maxKeys: 3 })
}

/** Something else in one place of it: another type, a missing or an unknown member. */
const mutated = (right: fc.Arbitrary<unknown>): fc.Arbitrary<unknown> =>
  fc.tuple(right, fc.nat(), fc.oneof(junk, fc.jsonValue({ maxDepth: 2 })), fc.nat(3)).map(([value, at, other, how]) => {
    if (typeof value !== "object" || value === null || Array.isArray(value) || how === 0) return other
    const entries = Object.entries(value)
    const [key] = entries[at % Math.max(1, entries.length)] ?? ["unknown"]
    if (how === 1) return Object.fromEntries(entries.filter(([one]) => one !== key))
    return how === 2 ? { ...value, [key]: other } : { ...value, surprise: other }
  })

interface Request {
  readonly operationId: string
  readonly path: string
  readonly method: string
  readonly url: string
  readonly headers: Readonly<Record<string, string>>
  readonly body: string | null
}

const values = (parameters: ReadonlyArray<Parameter>, known: Known, wild: boolean) =>
  few(
    Object.fromEntries(
      parameters.map(({ name, schema }) => {
        const right = text(pools(known)[name], schema)
        return [name, wild ? fc.oneof({ weight: 3, arbitrary: right }, junk) : right] as const
      })
    ),
    parameters.filter(({ required }) => required).map(({ name }) => name)
  )

const bodies = (operation: Operation, known: Known, wild: boolean): fc.Arbitrary<readonly [string, string] | null> => {
  const content = Object.entries(operation.requestBody?.content ?? {})
  if (content.length === 0) return fc.constant(null)
  const right = fc
    .constantFrom(...content)
    .chain(([type, { schema }]) =>
      (wild ? mutated(valid(schema, known)) : valid(schema, known)).map(
        (value) => [type, JSON.stringify(value)] as const
      )
    )
  if (!wild) return right
  const broken = fc.constantFrom(
    ["application/json", "{"] as const,
    ["application/json", '{"size": 1, "size": 2}'] as const,
    ["application/json", '{"__proto__": {"admin": true}}'] as const,
    ["application/json", "[".repeat(5_000)] as const,
    ["text/plain", "{}"] as const,
    ["application/json; charset=latin1", "{}"] as const,
    null
  )
  return fc.oneof({ weight: 3, arbitrary: right }, broken)
}

const sendable = (values: Readonly<Record<string, string>>) =>
  Object.fromEntries(Object.entries(values).filter(([, value]) => /^[\x20-\x7e]*$/.test(value)))

/** A held-back answer without a time-out would be held back for a minute. */
const hasty = (query: URLSearchParams, operation: Operation) => {
  const waits = query.has("wait") && operation.parameters.some(({ name }) => name === "timeout")
  if (waits && !query.has("timeout")) query.set("timeout", "5ms")
  return query
}

const requests = (known: Known): fc.Arbitrary<Request> => {
  const routes = Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method, operation }))
  )
  return fc.tuple(fc.constantFrom(...routes), fc.boolean()).chain(([{ path, method, operation }, wild]) => {
    const of = (place: Parameter["in"]) =>
      values(
        operation.parameters.filter((parameter) => parameter.in === place),
        known,
        wild
      )
    return fc
      .tuple(of("path"), of("query"), of("header"), bodies(operation, known, wild))
      .map(([places, asked, headers, body]): Request => {
        const query = hasty(new URLSearchParams(asked), operation).toString()
        // An empty segment would be another route's path.
        const filled = path.replaceAll(/\{(\w+)\}/g, (_, key: string) => encodeURIComponent(places[key] || " "))
        return {
          operationId: operation.operationId,
          path,
          method,
          url: `${filled}${query === "" ? "" : `?${query}`}`,
          headers: { ...sendable(headers), ...(body === null ? {} : { "content-type": body[0] }) },
          body: body?.[1] ?? null
        }
      })
  })
}

interface Answer {
  readonly status: number
  readonly type: string
  readonly text: string
}

/** Of a stream that never ends only the head is waited for. */
const ask = (origin: string, { url, method, headers, body }: Request): Effect.Effect<Answer> =>
  Effect.promise(async () => {
    const stop = new AbortController()
    const response = await fetch(`${origin}${url}`, {
      method: method.toUpperCase(),
      headers,
      redirect: "manual",
      signal: AbortSignal.any([stop.signal, AbortSignal.timeout(20_000)]),
      ...(body === null ? {} : { body })
    })
    const type = (response.headers.get("content-type") ?? "").split(";")[0] ?? ""
    if (type !== "text/event-stream") return { status: response.status, type, text: await response.text() }
    stop.abort()
    return { status: response.status, type, text: "" }
  })

/** Everything about this answer that the document does not say. */
const undocumented = (request: Request, answer: Answer): ReadonlyArray<string> => {
  const operation = document.paths[request.path]?.[request.method]
  const given = operation?.responses[answer.status]
  if (given === undefined) return [`status ${answer.status} is not documented`]
  const { content } = given.$ref === undefined ? given : (document.components.responses[last(given.$ref)] ?? {})
  const media = content?.[answer.type]
  if (media === undefined) return [`media type ${answer.type} is not documented for ${answer.status}`]
  return answer.type === "application/json" ? problems(media.schema, JSON.parse(answer.text)) : []
}

const prepare = (daemon: Site.Daemon): Effect.Effect<Known, unknown> =>
  Effect.gen(function* () {
    for (const name of NAMES) yield* daemon.client.put(name, { size: "1GiB", attached_to: "appliance" })
    const ready = daemon.store.declarations.pipe(
      Effect.filterOrFail((all) =>
        all.every(({ binding }) => binding.volume_id !== null && binding.attachment !== null)
      ),
      Effect.retry({ times: 400, while: () => Effect.as(Effect.sleep("50 millis"), true) })
    )
    const declarations = yield* ready
    const { items } = yield* daemon.store.operations({ limit: 20 })
    return {
      volumes: declarations.flatMap(({ binding }) => (binding.volume_id === null ? [] : [binding.volume_id])),
      operations: items.map(({ id }) => id)
    }
  })

describe("the server and its document", () => {
  it.scopedLive(
    "agree on every answer to every route, whatever it is asked, and nothing that must not happen happens (S5, S22)",
    () =>
      Effect.gen(function* () {
        const site = yield* Site.start
        const daemon = yield* site.daemon
        const known = yield* prepare(daemon)
        const seen = new Map<string, Set<number>>()
        for (const request of fc.sample(requests(known), { seed: SEED, numRuns: REQUESTS })) {
          const answer = yield* ask(daemon.url, request)
          const wrong = answer.status === 500 ? ["an internal error"] : undocumented(request, answer)
          assert.deepStrictEqual(
            wrong,
            [],
            `${JSON.stringify(request)}\n${answer.status} ${answer.text.slice(0, 1000)}`
          )
          if (answer.status >= 400) assert.strictEqual(answer.type, "application/json")
          seen.set(request.operationId, (seen.get(request.operationId) ?? new Set()).add(answer.status))
        }
        // Vacuity guards: each route was asked rightly and wrongly often enough for the agreement to say something.
        const all = Object.values(document.paths).flatMap(Object.values) as ReadonlyArray<Operation>
        const without = (kind: (status: number) => boolean) =>
          all.map(({ operationId }) => operationId).filter((id) => ![...(seen.get(id) ?? [])].some(kind))
        assert.isAtMost(without((status) => status < 300).length, 8, String(without((status) => status < 300)))
        assert.isBelow(without((status) => status >= 400 && status < 500).length, 20)
        assert.strictEqual((yield* Effect.promise(() => fetch(`${daemon.url}/livez`))).status, 200)
        assert.deepStrictEqual(site.world.truth(Date.now()).violations, [])
      }),
    120_000
  )
})
