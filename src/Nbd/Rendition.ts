import { Effect, Ref } from "effect"
import type { LoadRequest } from "../../reconciler/Nbd.ts"
import { type GateClosed, NbdUnavailable } from "../../schema/Errors.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdName from "../../schema/NbdName.ts"
import * as NbdReadBack from "../../schema/NbdReadBack.ts"
import * as Acl from "./Acl.ts"
import type * as Includes from "./Includes.ts"
import * as Pin from "./Pin.ts"
import { sentinelAt, type World } from "./World.ts"
import * as Written from "./Written.ts"

/** What a load writes, and the name that proves it to be served. */
export interface Rendition {
  readonly text: string
  /** What stands there until the included files are rewritten, whose marker proves nothing of the end. */
  readonly moving: string
  readonly marker: string
  /** The included files that change, with what they will say. */
  readonly included: ReadonlyArray<{ readonly file: Includes.Included; readonly text: string }>
}

/** The texts, each parsed again and compared with what was meant before anybody may write them. */
export const render = (
  world: World,
  request: LoadRequest,
  written: Written.Written
): Effect.Effect<Rendition, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { options } = world
    const sentinel = sentinelAt(world, written.judgement)
    const { document, includes } = written
    const names = new Set([...request.set.map(({ name }) => name), ...request.drop].map(NbdName.bytesOf))
    const included = yield* Effect.forEach(includes.files, (file) => reduced(file, names))
    const pins = yield* Pin.take(world, written, request.set)
    const rendering: NbdConfig.Rendering = {
      base: document,
      listen: options.nbd,
      sentinel,
      exports: request.set.map(({ name, path, read_only }) => {
        const pin = pins.get(name)
        const source = pin === undefined ? { path } : { path: pin.descriptor, pin: path }
        return { name: NbdName.bytesOf(name), ...source, read_only, authfile: Acl.pathOf(written.acl, name) }
      }),
      moving: includes.files.flatMap((file) => file.document.sections.map((section) => section.name)),
      drop: request.drop.map(NbdName.bytesOf),
      by_id_dir: options.by_id_dir
    }
    const result = NbdConfig.render(rendering)
    if (result._tag === "Refused") {
      return yield* new NbdUnavailable({ detail: `${options.nbd.config}: ${result.problems.slice(0, 5).join("; ")}` })
    }
    const hash = Written.hashOf(result.body, included)
    const text = NbdConfig.seal(result.body, hash, sentinel)
    const moving = NbdConfig.seal(result.body, Written.movingHashOf(result.body, included), sentinel)
    for (const one of [text, moving]) {
      const wrong = NbdReadBack.disagreement(one, rendering)
      if (wrong !== null) return yield* notMeant(wrong)
    }
    const unsure = yield* Ref.get(world.unsure)
    const changed = includes.files.flatMap((file, index) => {
      const now = included[index]?.text ?? file.text
      return now === file.text && !unsure.has(file.path) ? [] : [{ file, text: now }]
    })
    return { text, moving, marker: NbdConfig.markerName(hash), included: changed }
  })

/** An included file without the sections that move into the one file or go, every other byte as it is. */
const reduced = (file: Includes.Included, names: ReadonlySet<string>) =>
  Effect.gen(function* () {
    const text = NbdConfig.without(file.document, names)
    const wrong = NbdReadBack.leftover(text, file.document, names)
    if (wrong !== null) return yield* notMeant(`${file.path}: ${wrong}`)
    return { path: file.path, text }
  })

const notMeant = (wrong: string): NbdUnavailable =>
  new NbdUnavailable({ detail: `the rendered file is not what was meant: ${wrong}` })
