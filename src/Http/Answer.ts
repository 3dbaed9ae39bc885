import { Data, type Stream } from "effect"
import type * as Api from "../../schema/Api.ts"
import type { Status } from "../../schema/Condition.ts"
import type { Declaration } from "../../schema/Declaration.ts"
import type { Inventory, Source } from "../../schema/Inventory.ts"
import type { Operation } from "../../schema/Operation.ts"

/** A body that is no JSON. */
export class Text extends Data.TaggedClass("Text")<{ readonly text: string; readonly content_type: string }> {}

/** A body that goes on, until the client leaves or the server stops. It holds no place among the requests worked on. */
export class Streamed extends Data.TaggedClass("Streamed")<{
  readonly stream: Stream.Stream<Uint8Array>
  readonly content_type: string
}> {}

export const isText = (body: unknown): body is Text => body instanceof Text
export const isStream = (body: unknown): body is Streamed => body instanceof Streamed

/** What a handler answers. */
export interface Answer {
  readonly status: number
  /** JSON, `Text` or `Streamed`. */
  readonly body: unknown
  readonly headers?: Readonly<Record<string, string>>
}

export const ok = (body: unknown, headers: Readonly<Record<string, string>> = {}): Answer => ({
  status: 200,
  body,
  headers
})

export const rfc3339 = (ms: number): string => new Date(ms).toISOString()

export const volume = (declaration: Declaration, status: Status): Api.Volume => ({
  name: declaration.name,
  uid: declaration.uid,
  generation: declaration.generation,
  created_at: declaration.created_at,
  updated_at: declaration.updated_at,
  set: declaration.set,
  managers: declaration.managers,
  spec: declaration.spec,
  status,
  deletion: declaration.deletion === null ? null : { ...declaration.deletion, remaining: status.next_actions },
  removed_at: declaration.removed_at
})

/** Empty fields are left out, as the seed's clients expect; what only the journal needs is not shown. */
export const operation = (operation: Operation): Api.OperationAnswer => ({
  id: operation.id,
  type: operation.type,
  status: operation.status,
  volume_id: operation.volume_id,
  ...(operation.vm_id === null ? {} : { vm_id: operation.vm_id }),
  request: operation.request,
  ...(operation.response === null ? {} : { response: operation.response }),
  ...(operation.error === null ? {} : { error: operation.error }),
  created_at: operation.created_at,
  updated_at: operation.updated_at,
  ...(operation.completed_at === null ? {} : { completed_at: operation.completed_at }),
  name: operation.name,
  uid: operation.uid,
  cause: operation.cause,
  actor: operation.actor,
  generation: operation.generation,
  phase: operation.phase,
  ...(operation.job_id === null ? {} : { job_id: operation.job_id }),
  attempts: operation.attempts,
  ...(operation.parent_id === null ? {} : { parent_id: operation.parent_id })
})

/** A call as it is accepted: pending, whatever has become of it by the time of the answer. */
export const accepted = (operation_: Operation): Api.OperationAnswer =>
  operation({
    ...operation_,
    status: "pending",
    phase: "intended",
    response: null,
    error: null,
    completed_at: null,
    updated_at: operation_.created_at
  })

export const sources = (inventory: Inventory): Api.Sources => ({
  cloudstack: source(inventory.cloud),
  guest: source(inventory.guest),
  nbd: source(inventory.nbd)
})

const source = (read: Source<unknown>): Api.Sources["guest"] => {
  switch (read._tag) {
    case "Known":
      return { state: read.complete ? "known" : "incomplete", at: rfc3339(read.started_at), message: read.note }
    case "Unread":
      return { state: "unread", at: rfc3339(read.at), message: read.message }
  }
}
