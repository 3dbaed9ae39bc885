import { Effect, Ref } from "effect"
import type { WantedExport } from "../../reconciler/Nbd.ts"
import { type GateClosed, NbdUnavailable } from "../../schema/Errors.ts"
import type { Verification } from "../../schema/Inventory.ts"
import * as Acl from "./Acl.ts"
import * as Handshake from "./Handshake.ts"
import * as Main from "./Main.ts"
import * as Probe from "./Probe.ts"
import * as Processes from "./Processes.ts"
import type { World } from "./World.ts"

/** What the server must do once the file is written. */
export interface Duty {
  /** The name that proves the file to be loaded. */
  readonly marker: string
  readonly set: ReadonlyArray<WantedExport>
  /** Every other export in the file, whoever wrote it. */
  readonly others: ReadonlyArray<string>
  /** Names that must not be served. */
  readonly drop: ReadonlyArray<string>
  /** Names that it was seen to serve wrongly: it is replaced for them, whatever it answers now that they may be fenced. */
  readonly distrusted: ReadonlyArray<string>
  /** It did not answer a moment ago: it is not asked again before it is replaced, for that takes a time-out. */
  readonly hung: boolean
  readonly acl: Acl.Acl
  /** Where the file makes the server listen, as `address:port`; null: everywhere. */
  readonly listens: ReadonlyArray<string> | null
}

/**
 * Brings the server to do it, by at most one replacement of the main, and by none where it does already. Answers with the
 * exports that were served before it and are not after it, dropped and fenced ones aside.
 */
export const bring = (
  world: World,
  control: Main.Control,
  duty: Duty
): Effect.Effect<ReadonlyArray<string>, NbdUnavailable | GateClosed> =>
  Effect.gen(function* () {
    const { memory } = world
    const before = duty.hung ? silent : yield* judge(world, control, duty)
    const { hopeless } = yield* Ref.get(memory)
    const known = hopeless !== null && hopeless.main === before.main ? hopeless.faults : []
    const content = before.main !== null && before.faults.every((fault) => known.includes(fault))
    if (content && duty.distrusted.length === 0) return []
    if (control.start === "off") {
      return yield* new NbdUnavailable({ detail: "the file is written, but NBD_START is off: restart nbd-server" })
    }
    const stood = before.answers ? ((yield* granted(control, duty.others)) ?? []) : []
    yield* world.gate.check
    yield* Main.replace(control)
    yield* Main.untilServed(control, duty.marker)
    const after = yield* judge(world, control, duty)
    const stands = (yield* granted(control, stood)) ?? stood
    yield* Ref.update(memory, (m) => ({
      ...m,
      hopeless: after.main === null ? null : { main: after.main, faults: after.faults }
    }))
    const still = new Set([...after.served, ...stands, ...duty.drop])
    const lost = [...before.served, ...stood].filter((name) => !still.has(name))
    return yield* Effect.filter(lost, (name) => Effect.negate(Acl.denies(duty.acl, name)))
  })

/**
 * Which of these a GO is granted for, and no more is asked: there may be a thousand. Null where that takes too long, as at
 * a server that has begun to hang.
 */
const granted = ({ place }: Main.Control, names: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<string> | null> =>
  Effect.filter(names, (name) => Effect.map(Handshake.ask({ ...place, name }), ({ _tag }) => _tag === "Served"), {
    concurrency: 8
  }).pipe(
    Effect.interruptible,
    Effect.timeoutTo({ duration: GRANTED_TIMEOUT, onTimeout: () => null, onSuccess: (found) => found })
  )

const GRANTED_TIMEOUT = "4 seconds"

interface Judgement {
  /** `Probe.keyOf` the main that has loaded the file; null where none has. */
  readonly main: string | null
  /** It may be that a server is there all the same, and answers. */
  readonly answers: boolean
  /** Names that it serves. */
  readonly served: ReadonlyArray<string>
  /** What a main that has just read the file would do otherwise, and how: damaged memory looks like that (N7). */
  readonly faults: ReadonlyArray<string>
}

const silent: Judgement = { main: null, answers: false, served: [], faults: [] }

const judge = ({ silence }: World, control: Main.Control, duty: Duty): Effect.Effect<Judgement> =>
  Effect.gen(function* () {
    const { acl, drop, marker, set } = duty
    const names = [...set.map(({ name }) => name), ...drop]
    const { loaded, pid, server, verifications } = yield* Probe.look(control.place, marker, names, silence)
    const main = pid === null ? null : Processes.find(pid)
    const served = verifications.filter(({ outcome }) => outcome === "served").map(({ name }) => name)
    const answers = server === "running"
    if (!loaded || main === null) return { main: null, answers, served, faults: [] }
    const missing = set.filter((wanted, index) => !isServed(wanted, verifications[index]))
    const damaged = yield* Effect.filter(missing, ({ name }) => Effect.negate(isFenced(acl, name, verifications)))
    return {
      main: Probe.keyOf(main),
      answers,
      served,
      faults: [
        ...damaged.map((wanted) => faultOf(wanted.name, verifications)),
        ...drop.filter((name) => served.includes(name)),
        ...exposed(main, duty.listens)
      ]
    }
  })

/** One that answers otherwise than when it was given up is another fault: its link may be mended, and its memory damaged. */
const faultOf = (name: string, verifications: ReadonlyArray<Verification>): string =>
  `${name} ${verifications.find((one) => one.name === name)?.outcome ?? "unasked"}`

/** A path of the server's own memory may lead elsewhere than the file's, and a flag may be lost. */
const isServed = (wanted: WantedExport, verification: Verification | undefined): boolean =>
  verification?.outcome === "served" &&
  verification.size === wanted.size &&
  (verification.device === null || verification.device === wanted.device) &&
  !(wanted.read_only && verification.read_only === false)

/** Denied because its authfile denies it, as it shall. */
const isFenced = (acl: Acl.Acl, name: string, verifications: ReadonlyArray<Verification>): Effect.Effect<boolean> =>
  verifications.some((one) => one.name === name && one.outcome === "denied")
    ? Acl.denies(acl, name)
    : Effect.succeed(false)

const exposed = (main: Processes.Process, listens: ReadonlyArray<string> | null): ReadonlyArray<string> =>
  listens === null ? [] : Processes.listens(main.pid).filter((at) => !listens.includes(at))
