import { Chunk, Clock, Effect, type Scope } from "effect"
import type { Verification } from "../../schema/Inventory.ts"
import * as Handshake from "../Nbd/Handshake.ts"
import * as Node from "../Nbd/Node.ts"
import * as Processes from "../Nbd/Processes.ts"
import type * as Instance from "./Instance.ts"
import type * as Links from "./Links.ts"

/** One instance, and whether it answered a moment ago. */
export interface Asked {
  readonly instance: Instance.Instance
  readonly health: Instance.Health
}

/** Asks for each name: where its link is, or both instances where there is not one link, since then either may serve it. */
export const verify = (
  pair: readonly [Asked, Asked],
  links: ReadonlyArray<Links.Link>,
  names: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<Verification>> =>
  Effect.gen(function* () {
    const questions = [...new Set(names)].map((name) => ({ name, links: links.filter((link) => link.name === name) }))
    const answers = yield* Effect.forEach(pair, (asked) => {
      const { role } = asked.instance
      const mine = questions.filter(
        ({ links }) => links.length !== 1 || links.some(({ read_only }) => read_only === (role === "ro"))
      )
      return answer(asked, mine)
    })
    return questions.flatMap(({ name }) => {
      const given = answers.flatMap((one) => one.get(name) ?? [])
      return given.toSorted((a, b) => GRAVITY.indexOf(a.outcome) - GRAVITY.indexOf(b.outcome)).slice(0, 1)
    })
  })

/** Of two answers to one name the first of these is the one that matters: it is gone only where both say so. */
const GRAVITY: ReadonlyArray<Verification["outcome"]> = [
  "served",
  "dropped",
  "no_answer",
  "denied",
  "unknown",
  "refused"
]

interface Question {
  readonly name: string
  readonly links: ReadonlyArray<Links.Link>
}

type Answers = ReadonlyMap<string, Verification>

const answer = ({ health, instance }: Asked, questions: ReadonlyArray<Question>): Effect.Effect<Answers> => {
  switch (health._tag) {
    case "Absent":
      return unasked(questions, "refused", `nothing listens on ${instance.host}:${instance.port}`)
    case "Hung":
    case "Foreign":
      return unasked(questions, "no_answer", health.problem)
    case "Running":
      return prove(instance, health.process, questions)
  }
}

const unasked = (questions: ReadonlyArray<Question>, outcome: Verification["outcome"], message: string) =>
  Effect.map(Clock.currentTimeMillis, (verified_at): Answers => {
    const nothing = { outcome, size: null, read_only: null, device: null, verified_at, message }
    return new Map(questions.map(({ name }) => [name, { name, ...nothing }]))
  })

const ATTEMPTS = 4
/** Connections of ours kept open together; the process opens four descriptors for each. */
const BATCH = 32
/** Without an answer to so many, the rest is not asked: each would cost its time-out. */
const SILENCES_MAX = 3

/**
 * Asks until the disk of each is told, a few times: between two looks at the process another client may have come. A disk
 * other than the one that the link leads to must be told twice.
 */
const prove = (
  instance: Instance.Instance,
  process: Processes.Process,
  questions: ReadonlyArray<Question>
): Effect.Effect<Answers> =>
  Effect.gen(function* () {
    const answers = new Map<string, Verification>()
    const told = new Map<string, string>()
    let left = questions
    for (let attempt = 0; attempt < ATTEMPTS && left.length > 0; attempt++) {
      const again: Array<Question> = []
      for (const batch of Chunk.chunksOf(Chunk.fromIterable(left), BATCH)) {
        const silences = [...answers.values()].filter(({ outcome }) => outcome === "no_answer").length
        const asked = silences < SILENCES_MAX ? asking(instance, process.pid, batch) : silence(batch)
        for (const [name, verification] of yield* asked) {
          const question = questions.find((one) => one.name === name)
          const { device } = verification
          const sure = verification.outcome !== "served" || (device !== null && device === told.get(name))
          answers.set(name, sure ? verification : { ...verification, device: null })
          if (question === undefined || sure) continue
          if (device !== null && device === (yield* leadsTo(question))) answers.set(name, verification)
          else again.push(question)
          if (device !== null) told.set(name, device)
        }
      }
      left = again
    }
    return answers
  })

const leadsTo = ({ links: [link] }: Question): Effect.Effect<string | null> =>
  link === undefined || link.path === null
    ? Effect.succeed(null)
    : Effect.map(Node.at(link.path), (node) => node?.identity ?? null)

const silence = (questions: Iterable<Question>) =>
  unasked([...questions], "no_answer", "it did not answer to other names")

/** One after the other, so that it can be told what is opened for which; closed together at the end. */
const asking = (instance: Instance.Instance, pid: number, questions: Iterable<Question>): Effect.Effect<Answers> =>
  Effect.scoped(
    Effect.gen(function* () {
      const opened: Array<number> = []
      yield* Effect.addFinalizer(() => closed(pid, opened))
      const all = Effect.forEach(questions, ({ name }) => ask(instance, pid, name, opened))
      const answers = yield* all.pipe(Effect.scoped, Effect.parallelFinalizers)
      return new Map(answers.map((verification) => [verification.name, verification]))
    })
  )

/**
 * The connection stays open with the scope. The disk is the one that the process opened between question and answer,
 * where it was the only one; null where another client was granted an export in that moment.
 */
const ask = (
  { host, port }: Instance.Instance,
  pid: number,
  name: string,
  opened: Array<number>
): Effect.Effect<Verification, never, Scope.Scope> =>
  Effect.gen(function* () {
    const verified_at = yield* Clock.currentTimeMillis
    let before: ReadonlySet<number> = new Set()
    const look = Effect.sync(() => {
      before = Processes.descriptorNumbers(pid)
    })
    const { outcome } = yield* Handshake.hold({ host, port, name }, look)
    const fresh = outcome._tag !== "Served" ? [] : Processes.opened(pid, before).filter((one) => one.device !== null)
    const [only] = fresh.length === 1 ? fresh : []
    if (only !== undefined) opened.push(only.number)
    return Handshake.verification({ name, verified_at, device: only?.device ?? null }, outcome)
  })

const CLOSED_LOOKS = 40
const CLOSED_MS = 2

/**
 * nbdkit closes a disk a moment after its connection: a number that is free again only during the next question would
 * hide what is opened for that one, and whoever looks at the clients next would see ours.
 */
const closed = (pid: number, numbers: ReadonlyArray<number>): Effect.Effect<void> =>
  Effect.gen(function* () {
    for (let looks = 0; looks < CLOSED_LOOKS; looks++) {
      const open = Processes.descriptorNumbers(pid)
      if (!numbers.some((number) => open.has(number))) return
      yield* Effect.sleep(CLOSED_MS)
    }
  })
