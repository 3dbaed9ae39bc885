import type * as SqlClient from "@effect/sql/SqlClient"
import { Effect } from "effect"
import type * as Driver from "mysql2/promise"
import { OperationId } from "../../schema/Ids.ts"
import type { Advance, Store } from "../../reconciler/Store.ts"
import { attach, settled } from "../Store/Samples.ts"

/** Of one statement, so that none holds its locks for long. */
const BATCH = 50_000
/** To which the operations belong in turn. */
export const VOLUMES = 10_000

const ended: Advance = { ...settled, response: { device_path: "/dev/disk/by-id/virtio-1" } }

export const operationId = (n: number) => OperationId.make(`op-00000000-0000-4000-8000-${String(n).padStart(12, "0")}`)
export const volumeId = (n: number) => `00000000-0000-4000-9000-${String(n % VOLUMES).padStart(12, "0")}`

/**
 * One operation as the store writes it, of the declaration number 0, again and again with another id, volume, time and
 * outcome: from 1 on, the newest last. On MariaDB, which counts by itself.
 */
export const fill = Effect.fnUntraced(function* (
  sql: SqlClient.SqlClient,
  store: Store["Type"],
  plain: Driver.Connection,
  count: number
) {
  const first = yield* store.intend(attach(0))
  yield* store.advance(first.operation_id, ended)
  const rows = yield* sql<{ name: string }>`SELECT column_name AS name FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'volume_operations'`
  // Half a minute between one and the next: together they are a year.
  const created = `TIMESTAMPADD(SECOND, 30 * (CAST(seq AS SIGNED) - ${count}) - 60, UTC_TIMESTAMP(3))`
  const at = (ms: number) => `TIMESTAMPADD(MICROSECOND, ${ms * 1000}, ${created})`
  const iso = (ms: number) => `CONCAT(LEFT(DATE_FORMAT(${at(ms)}, '%Y-%m-%dT%H:%i:%s.%f'), 23), 'Z')`
  const values: Readonly<Record<string, string>> = {
    id: "CONCAT('op-00000000-0000-4000-8000-', LPAD(seq, 12, '0'))",
    volume_id: `CONCAT('00000000-0000-4000-9000-', LPAD(seq % ${VOLUMES}, 12, '0'))`,
    uid: `CONCAT('00000000-0000-4000-a000-', LPAD(seq % ${VOLUMES}, 12, '0'))`,
    name: `CONCAT('volume-', seq % ${VOLUMES})`,
    type: "ELT(1 + seq % 4, 'attach', 'export', 'unexport', 'detach')",
    status: "IF(seq % 100 = 0, 'failed', IF(seq % 100 = 1, 'cancelled', 'completed'))",
    created_at: created,
    updated_at: at(900),
    completed_at: at(900),
    created_iso: iso(0),
    updated_iso: iso(900),
    completed_iso: iso(900)
  }
  const names = rows.map(({ name }) => name)
  const columns = names.map((name) => values[name] ?? `o.${name}`).join(", ")
  for (let from = 1; from <= count; from += BATCH) {
    const to = Math.min(count, from + BATCH - 1)
    yield* Effect.promise(() =>
      plain.query(`INSERT INTO volume_operations (${names.join(", ")})
        SELECT ${columns} FROM volume_operations o JOIN seq_${from}_to_${to}
        WHERE o.id = '${first.operation_id}'`)
    )
  }
  yield* Effect.promise(() => plain.query("ANALYZE TABLE volume_operations"))
})
