import { createHash } from "node:crypto"
import { readFileSync } from "node:fs"
import * as Vm from "node:vm"
import * as HttpApi from "@effect/platform/HttpApi"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { statuses } from "../../schema/Api.ts"
import { Api } from "../../schema/Routes.ts"
import { version } from "../../src/Cli/Package.ts"
import * as Description from "../../src/Http/Description.ts"
import { send, start } from "./support.ts"

interface Response {
  readonly $ref?: string
  readonly description?: string
  readonly content?: Readonly<Record<string, { readonly schema: { readonly $ref?: string; readonly type?: string } }>>
}

interface Operation {
  readonly operationId: string
  readonly summary?: string
  readonly tags: ReadonlyArray<string>
  readonly security?: ReadonlyArray<unknown>
  readonly requestBody?: { readonly required: boolean; readonly content: Readonly<Record<string, unknown>> }
  readonly responses: Readonly<Record<string, Response>>
}

interface Document {
  readonly openapi: string
  readonly security: ReadonlyArray<unknown>
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>
  readonly components: {
    readonly schemas: Readonly<Record<string, Readonly<Record<string, unknown>>>>
    readonly responses: Readonly<Record<string, Response>>
    readonly securitySchemes: Readonly<Record<string, { readonly type: string; readonly scheme: string }>>
  }
}

const copy = readFileSync(new URL("../../schema/openapi.json", import.meta.url), "utf8")
const document = JSON.parse(copy) as Document
const operations = Object.entries(document.paths).flatMap(([path, item]) =>
  Object.entries(item).map(([method, operation]) => ({ path, method, operation }))
)

const resolved = (response: Response): Response =>
  response.$ref === undefined ? response : (document.components.responses[response.$ref.split("/").at(-1) ?? ""] ?? {})

const named = (id: string) => operations.find(({ operation }) => operation.operationId === id)?.operation

describe("/openapi.json", () => {
  it("is the copy in the repository (if not: npm run openapi)", () => {
    assert.strictEqual(Description.format(version()), copy)
  })

  it.scopedLive("is what the server answers, the same each time", () =>
    Effect.gen(function* () {
      const { url } = yield* start({ version: version() })
      const first = yield* send(`${url}/openapi.json`)
      assert.strictEqual(first.status, 200)
      assert.match(first.headers.get("content-type") ?? "", /^application\/json/)
      assert.deepStrictEqual(first.body, JSON.parse(copy))
      assert.deepStrictEqual((yield* send(`${url}/openapi.json`)).body, first.body)
    })
  )

  it("documents every endpoint of the contract, and nothing else", () => {
    const contract: Array<string> = []
    HttpApi.reflect(Api, {
      onGroup: () => {},
      onEndpoint: ({ endpoint: { method, name, path } }) =>
        void contract.push(`${method} ${path.replaceAll(/:(\w+)/g, "{$1}")} ${name}`)
    })
    assert.sameMembers(
      operations.map(({ path, method, operation }) => `${method.toUpperCase()} ${path} ${operation.operationId}`),
      contract
    )
  })

  it("has a summary for each, which is one line", () => {
    for (const { operation } of operations) {
      assert.match(operation.summary ?? "", /^[A-Z][^\n]{9,119}$/, operation.operationId)
    }
    const ids = operations.map(({ operation }) => operation.operationId)
    assert.strictEqual(new Set(ids).size, ids.length)
  })

  it("documents every status that can be refused with, each with the error body and its codes", () => {
    for (const { operation } of operations) {
      const refusals = Object.entries(operation.responses).filter(([status]) => Number(status) >= 400)
      assert.includeMembers(
        refusals.map(([status]) => status),
        ["400", "405", "500", "503"],
        operation.operationId
      )
      for (const [status, response] of refusals) {
        const { description, content } = resolved(response)
        assert.include(JSON.stringify(content), "#/components/schemas/Error", `${operation.operationId} ${status}`)
        for (const [code, under] of Object.entries(statuses)) {
          assert.strictEqual(description?.split(", ").includes(code), String(under) === status, `${status} ${code}`)
        }
      }
    }
    for (const id of ["putVolume", "patchVolume", "deleteVolume", "apply", "v1CreateVolume", "v1AttachVolume"]) {
      assert.includeMembers(Object.keys(named(id)?.responses ?? {}), ["409", "412", "413", "415", "422", "429"], id)
    }
    for (const id of ["listVolumes", "listOperations", "listEvents", "watch"]) {
      assert.include(Object.keys(named(id)?.responses ?? {}), "410", id)
    }
  })

  it("names the media types of what is no JSON", () => {
    const typesOf = (id: string) => Object.keys(named(id)?.responses["200"]?.content ?? {})
    assert.deepStrictEqual(typesOf("watch"), ["text/event-stream"])
    assert.deepStrictEqual(typesOf("docs"), ["text/html"])
    assert.deepStrictEqual(typesOf("metrics"), ["text/plain"])
    assert.deepStrictEqual(typesOf("getVolume"), ["application/json"])
    assert.sameMembers(Object.keys(named("patchVolume")?.requestBody?.content ?? {}), [
      "application/json",
      "application/merge-patch+json"
    ])
  })

  it("has its big schemas under their names, and no reference that leads nowhere", () => {
    const { schemas, responses } = document.components
    for (const name of ["Error", "Volume", "Spec", "Status", "Operation", "Export", "Plan", "Health", "V1Volume"]) {
      assert.isDefined(schemas[name], name)
    }
    const references = [...copy.matchAll(/"\$ref": "#\/components\/(schemas|responses)\/([^"]+)"/g)]
    assert.isAbove(references.length, 100)
    for (const [, kind, name = ""] of references) {
      assert.isDefined(kind === "schemas" ? schemas[name] : responses[name], `${kind} ${name}`)
    }
    const used = new Set(references.map(([, , name]) => name))
    assert.deepStrictEqual(
      Object.keys(schemas).filter((name) => !used.has(name)),
      []
    )
  })

  it("asks for a token everywhere but on the health routes", () => {
    assert.deepStrictEqual(document.security, [{ bearer: [] }])
    assert.deepInclude(document.components.securitySchemes["bearer"], { type: "http", scheme: "bearer" })
    const open = operations.filter(({ operation }) => operation.security !== undefined)
    assert.sameMembers(
      open.map(({ path }) => path),
      ["/health", "/api/v1/health", "/livez", "/readyz"]
    )
    for (const { operation } of open) assert.deepStrictEqual(operation.security, [])
  })

  it("takes unknown keys in the bodies of version 1 and refuses them in those of version 2", () => {
    const { schemas } = document.components
    for (const [name, schema] of Object.entries(schemas)) {
      if (name.endsWith("Body")) assert.strictEqual(schema["additionalProperties"], name.startsWith("V1"), name)
    }
  })
})

/** As much of a document object model as the page uses. */
class Node {
  children: Array<Node | string> = []
  readonly listeners = new Map<string, (event: unknown) => void>()
  readonly name: string;
  [property: string]: unknown
  constructor(name: string) {
    this.name = name
  }
  append(...more: ReadonlyArray<Node | string>) {
    this.children.push(...more)
  }
  replaceChildren(...instead: ReadonlyArray<Node | string>) {
    this.children = [...instead]
  }
  addEventListener(type: string, listener: (event: unknown) => void) {
    this.listeners.set(type, listener)
  }
  all(name: string): ReadonlyArray<Node> {
    const below = this.children.flatMap((child) => (child instanceof Node ? child.all(name) : []))
    return this.name === name ? [this, ...below] : below
  }
  get text(): string {
    const own = typeof this["textContent"] === "string" ? this["textContent"] : ""
    return own + this.children.map((child) => (child instanceof Node ? child.text : child)).join("")
  }
}

const until = (holds: () => boolean) =>
  Effect.suspend(() => (holds() ? Effect.void : Effect.fail("not yet"))).pipe(
    Effect.retry({ times: 500, while: () => Effect.as(Effect.sleep("10 millis"), true) })
  )

/** The page's script at work against this server. */
const open = (url: string, script: string) => {
  const main = new Node("main")
  const form = new Node("form")
  const token = Object.assign(new Node("input"), { value: "" })
  const sent: Array<{ readonly url: string; readonly init: RequestInit }> = []
  const nodes: Readonly<Record<string, Node>> = { main, form, "form input": token }
  Vm.runInNewContext(script, {
    document: { createElement: (name: string) => new Node(name), querySelector: (query: string) => nodes[query] },
    fetch: (path: string, init: RequestInit = {}) => {
      sent.push({ url: path, init })
      return fetch(`${url}${path}`, init)
    },
    URLSearchParams,
    AbortController,
    TextDecoderStream
  })
  return { main, form, token, sent }
}

const pageOf = (url: string) =>
  Effect.promise(async () => {
    const response = await fetch(`${url}/docs`)
    return { headers: response.headers, html: await response.text() }
  })

const inside = (html: string, tag: "script" | "style") =>
  new RegExp(`<${tag}>([\\s\\S]*?)</${tag}>`).exec(html)?.[1] ?? ""

describe("/docs", () => {
  it.scopedLive("is one page that needs nothing but this server, and a policy holds it to that", () =>
    Effect.gen(function* () {
      const { headers, html } = yield* pageOf((yield* start()).url)
      assert.strictEqual(headers.get("content-type"), "text/html; charset=utf-8")
      const policy = headers.get("content-security-policy") ?? ""
      const hash = (text: string) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`
      assert.sameMembers(policy.split("; "), [
        "default-src 'none'",
        `script-src ${hash(inside(html, "script"))}`,
        `style-src ${hash(inside(html, "style"))}`,
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'"
      ])
      assert.strictEqual(headers.get("x-content-type-options"), "nosniff")
      assert.notMatch(html, /https?:\/\/|\bsrc=|\bon[a-z]+="|\bstyle="|innerHTML|insertAdjacentHTML|eval\(|Storage\b/)
      assert.match(html, /color-scheme: light dark/)
    })
  )

  it.scopedLive("lists every route, shows its schemas when it is opened, and tries it", () =>
    Effect.gen(function* () {
      const { url, world } = yield* start()
      const { html } = yield* pageOf(url)
      const page = open(url, inside(html, "script"))
      yield* until(() => page.main.all("details").length === operations.length)
      const routes = page.main.all("details")
      const opened = (method: string, path: string) => {
        const route =
          routes.find((one) => one["className"] === method && one.all("code")[0]?.text === path) ??
          assert.fail(`${method} ${path}`)
        route.listeners.get("toggle")?.({})
        return route
      }
      const put = opened("put", "/api/v2/volumes/{name}")
      assert.include(put.text, "deletion_policy?: ")
      assert.include(put.text, "FIELD_IMMUTABLE")
      const fieldOf = (title: string) =>
        put
          .all("label")
          .find((label) => label.text === title)
          ?.all("input")[0] ?? assert.fail(title)
      fieldOf("name")["value"] = "a"
      fieldOf("dry_run")["value"] = ""
      for (const input of put.all("input")) input["value"] ??= ""
      const body = put.all("textarea")[0] ?? assert.fail("there is a body to fill in")
      body["value"] = JSON.stringify({ size: "1GiB" })
      const click = put.all("button").find(({ text }) => text === "Send")?.["onclick"] as () => Promise<void>
      yield* Effect.promise(click)
      const output = put.all("pre").find(({ text }) => text.startsWith("201"))
      assert.include(output?.text ?? put.text, '"name": "a"')
      assert.deepStrictEqual(
        world.declarations.map(({ name }) => `${name}`),
        ["a"]
      )
    })
  )

  it.scopedLive("sends the token it is given, to this server only", () =>
    Effect.gen(function* () {
      const { url } = yield* start()
      const { html } = yield* pageOf(url)
      const page = open(url, inside(html, "script"))
      page.token["value"] = "secret-of-the-reader"
      page.form.listeners.get("submit")?.({ preventDefault: () => {} })
      yield* until(() => page.sent.length === 2)
      assert.deepStrictEqual(
        page.sent.map(({ url, init }) => [url, (init.headers as Record<string, string>)["authorization"]]),
        [
          ["/openapi.json", undefined],
          ["/openapi.json", "Bearer secret-of-the-reader"]
        ]
      )
      yield* until(() => page.main.all("details").length === operations.length)
    })
  )
})
