import * as OpenApi from "@effect/platform/OpenApi"
import { createHash } from "node:crypto"
import { Effect } from "effect"
import { statuses } from "../../schema/Api.ts"
import { Api } from "../../schema/Routes.ts"
import { type Answer, ok, Text } from "./Answer.ts"
import * as DocsPage from "./DocsPage.ts"

type Operation = OpenApi.OpenAPISpecOperation
type Response = OpenApi.OpenApiSpecResponse

/** The contract as an OpenAPI 3.1 document: the same for the same version. */
const document = (version: string) => {
  const { components, paths, tags } = OpenApi.fromApi(Api)
  return {
    openapi: "3.1.0",
    info: {
      title: "volumed",
      version,
      summary: "Declarative volumes for CloudStack appliances",
      description:
        "Version 1 is the API of the volume daemon that volumed replaces; version 2 declares what each volume should " +
        "be. Sizes are bytes, times RFC 3339 in UTC. Every refusal has the body `Error`.",
      license: { name: "Apache-2.0" }
    },
    servers: [{ url: "/" }],
    tags,
    security: [{ bearer: [] }],
    paths: mapValues(paths, (item) => mapValues(item, describe)),
    components: {
      schemas: mapValues(withoutLibrary(components.schemas), (schema, name) =>
        isV1Body(name) ? { ...schema, additionalProperties: true } : schema
      ),
      responses: refusals(),
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer", description: "Wanted where the daemon was given tokens." }
      }
    }
  }
}

/** As the copy in the repository is written, which `npm run openapi` renews. */
export const format = (version: string): string => `${JSON.stringify(document(version), null, 2)}\n`

/** The answers of a library that decodes requests by itself, which this server does not use. */
const foreign = ["HttpApiDecodeError", "Issue", "PropertyKey"]

const withoutLibrary = <A>(schemas: Readonly<Record<string, A>>): Record<string, A> =>
  Object.fromEntries(Object.entries(schemas).filter(([name]) => !foreign.includes(name)))

/** Version 1 ignores keys that it does not know. */
const isV1Body = (name: string) => name.startsWith("V1") && name.endsWith("Body")

const mapValues = <A, B>(record: Readonly<Record<string, A>>, change: (value: A, key: string) => B) =>
  Object.fromEntries(Object.entries(record).map(([key, value]): [string, B] => [key, change(value, key)]))

const describe = (operation: Operation, method: string) => {
  const { operationId, tags, summary, parameters, requestBody, responses } = operation
  return {
    operationId,
    tags,
    ...(summary === undefined ? {} : { summary }),
    // The health routes are open to whoever reaches them; all others inherit what the document asks for.
    ...(tags.includes("health") ? { security: [] } : {}),
    parameters,
    ...(requestBody === undefined
      ? {}
      : {
          requestBody: {
            required: operationId !== "retryVolume",
            content: bodiesOf(method, requestBody.content)
          }
        }),
    responses: mapValues<Response, unknown>(responses, (response, status) => answerOf(Number(status), response))
  }
}

/** A patch may be called by either of its names. */
const bodiesOf = (method: string, content: OpenApi.OpenApiSpecContent) =>
  method === "patch" ? { ...content, "application/merge-patch+json": content["application/json"] } : content

const answerOf = (status: number, { content }: Response) => {
  const described = { description: status < 400 ? (meanings[status] ?? "Done") : codesOf(status) }
  if (content === undefined) return described
  const own = mapValues(content, ownBody)
  const refusal = JSON.stringify(own) === JSON.stringify(refusalOf(status).content)
  return refusal ? { $ref: `#/components/responses/${status}` } : { ...described, content: own }
}

/** The answers that say nothing but what went wrong, written down once. */
const refusals = () =>
  Object.fromEntries([...new Set(Object.values(statuses))].map((status) => [status, refusalOf(status)]))

const refusalOf = (status: number) => ({
  description: codesOf(status),
  content: { "application/json": { schema: { $ref: "#/components/schemas/Error" } } }
})

const codesOf = (status: number) =>
  Object.entries(statuses)
    .flatMap(([code, under]) => (under === status ? [code] : []))
    .join(", ")

const meanings: Readonly<Record<number, string>> = { 201: "Accepted or made", 202: "Declared removed" }

const ownBody = ({ schema }: OpenApi.OpenApiSpecMediaType) => {
  if (!("anyOf" in schema)) return { schema }
  const own = schema.anyOf.filter((member) => !("$ref" in member && member.$ref.endsWith(`/${foreign[0]}`)))
  const [only] = own
  return { schema: own.length === 1 && only !== undefined ? only : { ...schema, anyOf: own } }
}

export const openapi = (version: string) => {
  // Made when it is first asked for, then kept: it cannot change while the process lives.
  const text = Effect.runSync(Effect.cached(Effect.sync(() => JSON.stringify(document(version)))))
  return (): Effect.Effect<Answer> =>
    Effect.map(text, (json) => ok(new Text({ text: json, content_type: "application/json" })))
}

const sha256 = (text: string) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`

/** Nothing but what stands in the page itself may run, and it may talk to nobody but this server. */
const POLICY = [
  "default-src 'none'",
  `script-src ${sha256(DocsPage.script)}`,
  `style-src ${sha256(DocsPage.style)}`,
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'"
].join("; ")

export const docs = () =>
  Effect.succeed(
    ok(new Text({ text: DocsPage.html, content_type: "text/html; charset=utf-8" }), {
      "content-security-policy": POLICY,
      "referrer-policy": "no-referrer"
    })
  )
