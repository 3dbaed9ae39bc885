import * as Net from "node:net"
import { assert } from "@effect/vitest"
import { Effect } from "effect"

/** Whatever was refused, the body has the contract's form, and nothing else. */
export const assertErrorBody = (body: Record<string, unknown>, code: string) => {
  assert.sameMembers(Object.keys(body), ["error", "code", "details", "request_id"])
  assert.strictEqual(body["code"], code)
  assert.match(String(body["request_id"]), /^req-[0-9a-f-]{36}$/)
  assert.strictEqual(typeof body["details"], "object")
  assert.ok(String(body["error"]).length > 0)
}

/** What a raw socket is answered, until the server ends the connection. */
export const speak = (port: number, ...parts: ReadonlyArray<string>): Effect.Effect<string> =>
  Effect.async<string>((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    let answer = ""
    socket.setEncoding("utf8")
    socket.on("data", (text: string) => (answer += text))
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed(answer)))
    for (const part of parts) socket.write(part)
    return Effect.sync(() => socket.destroy())
  })

/** One answer of those that came over a connection. */
export interface Received {
  readonly status: number
  readonly headers: ReadonlyMap<string, string>
  readonly body: Record<string, unknown>
}

/** The answers in a text, each as long as its Content-Length or its chunks say. */
export const received = (text: string): ReadonlyArray<Received> => {
  const answers: Array<Received> = []
  let rest = text
  while (rest !== "") {
    const end = rest.indexOf("\r\n\r\n")
    const [first = "", ...lines] = rest.slice(0, end).split("\r\n")
    const headers = new Map(
      lines.map((line) => [line.slice(0, line.indexOf(":")).toLowerCase(), line.slice(line.indexOf(":") + 1).trim()])
    )
    const status = Number(/^HTTP\/1\.1 ([0-9]{3}) /.exec(first)?.[1])
    const length = headers.get("content-length")
    assert.ok(status > 0 && length !== undefined, rest)
    const from = end + 4
    const body = Buffer.from(rest.slice(from)).subarray(0, Number(length)).toString()
    answers.push({ status, headers, body: JSON.parse(body) as Record<string, unknown> })
    rest = rest.slice(from + body.length)
  }
  return answers
}
