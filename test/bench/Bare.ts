import { spawn } from "node:child_process"
import { once } from "node:events"
import { createServer, type OutgoingHttpHeaders } from "node:http"
import type { AddressInfo } from "node:net"
import { fileURLToPath } from "node:url"

/** What is answered to each path: the very bytes that the daemon answered. */
export type Answers = Readonly<Record<string, { readonly headers: OutgoingHttpHeaders; readonly body: string }>>

/** Nothing but Node's HTTP server, in a process of its own: what any answer costs that has no work behind it. */
export const withBare = async <A>(answers: Answers, use: (origin: string) => Promise<A>): Promise<A> => {
  const child = spawn(process.execPath, ["--import", "tsx", fileURLToPath(import.meta.url)], {
    env: { ...process.env, BARE_ANSWERS: JSON.stringify(answers) },
    stdio: ["ignore", "pipe", "inherit"]
  })
  try {
    const [port] = (await Promise.race([once(child.stdout, "data"), once(child, "exit")])) as [unknown]
    if (!Buffer.isBuffer(port)) throw new Error("the bare server did not start")
    return await use(`http://127.0.0.1:${port.toString().trim()}`)
  } finally {
    child.kill("SIGKILL")
    if (child.exitCode === null && child.signalCode === null) await once(child, "exit")
  }
}

const serve = (answers: Answers): void => {
  const server = createServer((request, response) => {
    const answer = answers[request.url ?? ""]
    if (answer === undefined) response.writeHead(404).end()
    else response.writeHead(200, answer.headers).end(answer.body)
  })
  server.listen(0, "127.0.0.1", () => process.stdout.write(`${(server.address() as AddressInfo).port}\n`))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  serve(JSON.parse(process.env["BARE_ANSWERS"] ?? "{}") as Answers)
}
