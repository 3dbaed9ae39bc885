import type { ServerResponse } from "node:http"
import { Chunk, Effect, Stream } from "effect"
import { type Answer, isStream, isText } from "./Answer.ts"

/** Sends an answer; of one that goes on, until its stream ends or this is interrupted. */
export const send = (response: ServerResponse, answer: Answer, request_id: string): Effect.Effect<void> => {
  const { body } = answer
  if (isStream(body)) return pour(response, body.stream, headOf(answer, request_id, body.content_type))
  const [text, type] = isText(body) ? [body.text, body.content_type] : [JSON.stringify(body), "application/json"]
  return Effect.sync(() => {
    const length = Buffer.byteLength(text)
    response.writeHead(answer.status, { ...headOf(answer, request_id, type), "content-length": length })
    // As a text it leaves in one piece with the head, which halves what sending costs. To a HEAD goes the head alone.
    response.end(text)
  })
}

const headOf = ({ headers }: Answer, request_id: string, type: string) => ({
  ...headers,
  "content-type": type,
  "x-request-id": request_id,
  "cache-control": "no-store",
  "x-content-type-options": "nosniff"
})

/** No faster than the client reads. */
const pour = (response: ServerResponse, stream: Stream.Stream<Uint8Array>, head: Readonly<Record<string, string>>) =>
  Effect.suspend(() => {
    response.writeHead(200, head)
    response.flushHeaders()
    if (response.req.method === "HEAD") return Effect.void
    return Stream.runForEachChunk(stream, (chunk) => {
      const free = Chunk.reduce(chunk, true, (_, bytes) => response.write(bytes))
      return free ? Effect.void : drained(response)
    })
  }).pipe(Effect.ensuring(Effect.sync(() => response.end())))

const drained = (response: ServerResponse) =>
  Effect.async<void>((resume) => {
    const onDrain = () => resume(Effect.void)
    response.once("drain", onDrain)
    return Effect.sync(() => response.off("drain", onDrain))
  })
