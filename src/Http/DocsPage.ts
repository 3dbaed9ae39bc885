/**
 * The page that reads `/openapi.json` and tries it. It builds every element by hand and sets only text, so that nothing
 * an answer contains is ever taken for markup. The token stays in this page's memory and is gone with it.
 */
export const style = `
:root { color-scheme: light dark; --line: #8885; --soft: #8881; --get: #1a7f37; --write: #9a6700; --del: #cf222e }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 60rem; padding: 1rem }
h1 { margin: 0 } h2 { border-bottom: 1px solid var(--line); margin: 2rem 0 .5rem; text-transform: capitalize }
code, pre, input, textarea { font: 13px/1.45 ui-monospace, monospace }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0 }
summary { cursor: pointer; padding: .4rem .6rem }
summary b { display: inline-block; min-width: 4.2rem; text-transform: uppercase }
summary span { opacity: .75 }
.get b { color: var(--get) } .put b, .post b, .patch b { color: var(--write) } .delete b { color: var(--del) }
details > div { border-top: 1px solid var(--line); padding: .6rem }
label { display: grid; gap: .5rem; grid-template-columns: 14rem 1fr; margin: .25rem 0 }
input, textarea { border: 1px solid var(--line); border-radius: 4px; padding: .25rem .4rem; width: 100% }
textarea { min-height: 9rem }
pre { background: var(--soft); border-radius: 4px; margin: .4rem 0; max-height: 30rem; overflow: auto; padding: .6rem;
  white-space: pre-wrap; overflow-wrap: anywhere }
button { border: 1px solid var(--line); border-radius: 4px; font: inherit; margin: .4rem .4rem .4rem 0; padding: .25rem .9rem }
.wrong { color: var(--del) }
`

export const script = `
"use strict"
const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}
let token = ""
let description = null

const named = (reference) => description.components.schemas[reference.split("/").at(-1)]

/** A schema as a reader of JSON would write it down. */
const shape = (schema, indent = "", seen = []) => {
  if (schema.$ref) {
    const name = schema.$ref.split("/").at(-1)
    return seen.includes(name) ? name : shape(named(schema.$ref), indent, [...seen, name])
  }
  const also = schema.anyOf || schema.oneOf
  if (also) return also.map((one) => shape(one, indent, seen)).join(" | ")
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ")
  if (schema.type === "array") return schema.items ? "[" + shape(schema.items, indent, seen) + ", ...]" : "[]"
  if (schema.type !== "object") return schema.type || "anything"
  const inner = indent + "  "
  const required = schema.required || []
  const lines = Object.entries(schema.properties || {}).map(([key, value]) =>
    inner + key + (required.includes(key) ? ": " : "?: ") + shape(value, inner, seen))
  if (typeof schema.additionalProperties === "object") {
    lines.push(inner + "[any key]: " + shape(schema.additionalProperties, inner, seen))
  }
  return lines.length ? "{\\n" + lines.join("\\n") + "\\n" + indent + "}" : "{}"
}

/** The required members of a body, to start from. */
const example = (schema) => {
  if (schema.$ref) return example(named(schema.$ref))
  if (schema.anyOf) return example(schema.anyOf[0])
  if (schema.enum) return schema.enum[0]
  if (schema.type === "array") return schema.items ? [example(schema.items)] : []
  if (schema.type === "object") {
    return Object.fromEntries((schema.required || []).map((key) => [key, example(schema.properties[key])]))
  }
  return { string: "", integer: 0, number: 0, boolean: false }[schema.type] ?? null
}

const field = (title, input) => element("label", {}, element("code", { textContent: title }), input)

const pretty = (text) => {
  try {
    return JSON.stringify(JSON.parse(text), null, 2)
  } catch {
    return text
  }
}

/** What comes in, piece by piece: a watch never ends by itself. */
const show = async (response, output) => {
  const head = response.status + " " + response.statusText
  output.className = response.ok ? "" : "wrong"
  if (!(response.headers.get("content-type") || "").startsWith("text/event-stream")) {
    output.textContent = head + "\\n\\n" + pretty(await response.text())
    return
  }
  output.textContent = head + "\\n\\n"
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    output.textContent = (output.textContent + part.value).slice(-100000)
  }
}

const request = (path, method, parameters, body) => {
  let url = path
  const query = new URLSearchParams()
  const headers = token === "" ? {} : { authorization: "Bearer " + token }
  for (const { parameter, input } of parameters) {
    if (parameter.in === "path") url = url.replace("{" + parameter.name + "}", encodeURIComponent(input.value))
    else if (input.value === "") continue
    else if (parameter.in === "query") query.set(parameter.name, input.value)
    else headers[parameter.name] = input.value
  }
  if (body && body.input.value.trim() !== "") headers["content-type"] = body.type
  const search = query.toString()
  return [url + (search ? "?" + search : ""), {
    method: method.toUpperCase(),
    headers,
    redirect: "error",
    ...(headers["content-type"] ? { body: body.input.value } : {})
  }]
}

const trial = (path, method, operation) => {
  const parameters = (operation.parameters || []).map((parameter) => ({
    parameter,
    input: element("input", { placeholder: parameter.in + (parameter.required ? ", required" : "") })
  }))
  const [type, media] = Object.entries(operation.requestBody?.content || {})[0] || []
  const body = type && {
    type,
    input: element("textarea", { value: JSON.stringify(example(media.schema), null, 2), spellcheck: false })
  }
  const output = element("pre", { hidden: true })
  let running = null
  const send = async () => {
    running?.abort()
    running = new AbortController()
    output.hidden = false
    output.textContent = "..."
    try {
      const [url, init] = request(path, method, parameters, body)
      await show(await fetch(url, { ...init, signal: running.signal }), output)
    } catch (problem) {
      output.textContent += "\\n" + problem
    }
  }
  return [
    ...parameters.map(({ parameter, input }) => field(parameter.name, input)),
    ...(body ? [field("body (" + type + ")", body.input)] : []),
    element("button", { textContent: "Send", onclick: send }),
    element("button", { textContent: "Stop", onclick: () => running?.abort() }),
    output
  ]
}

const answers = (operation) =>
  Object.entries(operation.responses).flatMap(([status, given]) => {
    const response = given.$ref ? description.components.responses[status] : given
    const bodies = given.$ref ? [] : Object.entries(response.content || {})
    return [
      element("div", { textContent: status + " " + response.description }),
      ...bodies.map(([type, media]) => element("pre", { textContent: type + "\\n" + shape(media.schema) }))
    ]
  })

const route = (path, method, operation) => {
  const inside = element("div")
  const details = element("details", { className: method },
    element("summary", {}, element("b", { textContent: method }), element("code", { textContent: path }), " ",
      element("span", { textContent: operation.summary || "" })), inside)
  // Built when it is opened: a page of all schemas at once is slow and of no use.
  details.addEventListener("toggle", () => {
    const content = operation.requestBody?.content["application/json"]
    inside.append(
      ...trial(path, method, operation),
      ...(content ? [element("h4", { textContent: "Body" }), element("pre", { textContent: shape(content.schema) })] : []),
      element("h4", { textContent: "Answers" }),
      ...answers(operation)
    )
  }, { once: true })
  return details
}

const start = async () => {
  const main = document.querySelector("main")
  const headers = token === "" ? {} : { authorization: "Bearer " + token }
  const response = await fetch("/openapi.json", { headers })
  if (!response.ok) {
    main.replaceChildren(element("p", { className: "wrong", textContent: "No description: " + response.status }))
    return
  }
  description = await response.json()
  const all = Object.entries(description.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([method, operation]) => ({ path, method, operation })))
  main.replaceChildren(
    element("p", { textContent: description.info.version + " - " + description.info.description }),
    ...description.tags.flatMap(({ name }) => [
      element("h2", { textContent: name }),
      ...all.filter(({ operation }) => operation.tags.includes(name))
        .map(({ path, method, operation }) => route(path, method, operation))
    ])
  )
}

document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault()
  token = document.querySelector("form input").value
  start()
})
start()
`

export const html = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>volumed API</title>
<style>${style}</style>
</head>
<body>
<h1>volumed</h1>
<form><label><code>token</code><input type="password" autocomplete="off" placeholder="only where the daemon wants one"></label>
<button>Use it</button> <a href="/openapi.json">openapi.json</a></form>
<main><p>Reading /openapi.json ...</p></main>
<script>${script}</script>
</body>
</html>
`
