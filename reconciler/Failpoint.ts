import { Context, Effect } from "effect"

/**
 * Points between two side effects, at which a test can end the process. Together they are every state that a crash can
 * leave behind, save those of the wire, where the other side decides what happened.
 */
export const marks = [
  /** Nothing is durable yet. */
  "intent.wanted",
  /** The intent is durable, the call not sent. */
  "intent.durable",
  /** Signed and checked for the last time; the next thing is the wire. */
  "call.leaving",
  /** The answer is here, and nowhere else. */
  "answer.received",
  "answer.recorded",
  /** All statements of a transaction are done, COMMIT is not. */
  "commit.wanted",
  /** Committed, and nobody told. */
  "commit.done",
  /** The temporary file is whole and synced. */
  "file.prepared",
  /** Renamed, the directory not synced. */
  "file.renamed",
  /** What leaves admits nobody any more, and still stands in the file. */
  "nbd.denied",
  "nbd.admitted",
  /** The file says what is wanted, the process still serves what was. */
  "nbd.stored",
  /** The main is gone, its successor not started: nothing listens. */
  "nbd.ended",
  "nbd.started",
  /** Served and proven, not recorded. */
  "nbd.served"
] as const
export type Mark = (typeof marks)[number]

/** What happens where a mark is passed: nothing, unless somebody provides otherwise. */
export class Failpoint extends Context.Reference<Failpoint>()("volumed/reconciler/Failpoint", {
  defaultValue: (): { readonly pass: (mark: Mark) => Effect.Effect<void> } => ({ pass: () => Effect.void })
}) {}

export const pass = (mark: Mark): Effect.Effect<void> => Effect.flatMap(Failpoint, (failpoint) => failpoint.pass(mark))
