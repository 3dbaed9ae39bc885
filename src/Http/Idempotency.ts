import { Schema } from "effect"
import type { Alongside } from "../../reconciler/Store.ts"
import { Name, OperationId, Uid } from "../../schema/Ids.ts"
import type { Request } from "./Request.ts"

const names = Schema.Array(Name)

/**
 * What is kept of the answer to an Idempotency-Key. What the store holds anyway is named rather than copied: a
 * declaration or an operation is answered again as it is then.
 */
export const Response = Schema.Union(
  /** A whole answer. */
  Schema.Struct({
    kind: Schema.Literal("answer"),
    body: Schema.Unknown,
    headers: Schema.Record({ key: Schema.String, value: Schema.String })
  }),
  /** An answer that is one declaration, its generation the ETag. */
  Schema.Struct({ kind: Schema.Literal("volume"), uid: Uid }),
  /** The answer of an apply; `uids` are the document's declarations in its order. */
  Schema.Struct({
    kind: Schema.Literal("volumes"),
    uids: Schema.Array(Uid),
    outcomes: Schema.Struct({
      created: names,
      changed: names,
      unchanged: names,
      pruned: names,
      prune_kept: names
    })
  }),
  /** An answer that is one operation; shown as pending where the status was 201. */
  Schema.Struct({ kind: Schema.Literal("operation"), id: OperationId }),
  /** The answer to a maintenance that was begun or ended: how it stands. */
  Schema.Struct({ kind: Schema.Literal("maintenance") })
)
export type Response = typeof Response.Type

/** What goes into the transaction of a write, so that a repeat of the request finds its answer: nothing without a key. */
export const alongside = (key: Request["key"], status: number, response: Response): Pick<Alongside, "answer"> =>
  key === null ? {} : { answer: { ...key, status, response } }
