import { Either, Schema } from "effect"
import * as Fs from "node:fs"
import * as CloudStackServer from "./CloudStackServer.ts"
import type { World } from "./World.ts"

/**
 * What the world was asked for since it was last written down whole. A real CloudStack that was killed still knows what it
 * answered; the world is a function of its requests and their times, so a line before each that may change it is enough.
 */
export interface RequestLog {
  /** To be called before the request is carried out. */
  readonly record: (request: CloudStackServer.WireRequest, now: number) => void
  /** How many lines there ever were: what is written down whole goes with this number, then the lines may go. */
  readonly count: () => number
  readonly clear: () => void
  readonly close: () => void
}

const Line = Schema.parseJson(
  Schema.Struct({
    count: Schema.Int,
    now: Schema.Number,
    request: Schema.Struct({
      method: Schema.String,
      url: Schema.String,
      headers: Schema.Record({ key: Schema.String, value: Schema.String }),
      body: Schema.String
    })
  })
)
type Line = typeof Line.Type

const decode = Schema.decodeEither(Line)

/** Carries out again what the world, written down after `applied` lines, lacks; then goes on with the file. */
export const resume = (world: World, file: string, applied: number): RequestLog => {
  const missed = lines(file).filter(({ count }) => count > applied)
  for (const { request, now } of missed) CloudStackServer.handle(world, request, now)
  let written = missed.at(-1)?.count ?? applied
  const descriptor = Fs.openSync(file, "a", 0o600)
  return {
    record: (request, now) => {
      if (changesNothing(world, request)) return
      written += 1
      Fs.writeSync(descriptor, `${JSON.stringify({ count: written, now, request } satisfies Line)}\n`)
    },
    count: () => written,
    clear: () => Fs.ftruncateSync(descriptor, 0),
    close: () => Fs.closeSync(descriptor)
  }
}

/** A line that was cut off was not answered, as nothing after it was. */
const lines = (file: string): ReadonlyArray<Line> => {
  const found: Array<Line> = []
  const text = Fs.existsSync(file) ? Fs.readFileSync(file, "utf8") : ""
  for (const line of text.split("\n")) {
    const decoded = decode(line)
    if (Either.isLeft(decoded)) return found
    found.push(decoded.right)
  }
  return found
}

/** A fault may be used up, or its chance drawn, by a mere question. */
const changesNothing = (world: World, { method, url, body }: CloudStackServer.WireRequest): boolean => {
  if (world.faults().length > 0) return false
  if (!/^\/client\/api\b/.test(url)) return method === "GET"
  return /(?:^|[?&])command=(?:list|query)[A-Za-z]+(?:&|$)/.test(method === "POST" ? body : url)
}
