import { readFileSync } from "node:fs"
import * as Processes from "./Processes.ts"

/** The bit of CAP_SYS_PTRACE in the kernel's sets of capabilities. */
const PTRACE = 1n << 19n

const effective = (pid: number | "self"): bigint | null => {
  const text = Processes.attempt(() => readFileSync(`/proc/${pid}/status`, "latin1"))
  const digits = /^CapEff:\s*([0-9a-f]{1,16})$/m.exec(text ?? "")?.[1]
  return digits === undefined ? null : BigInt(`0x${digits}`)
}

/** The kernel lets a process look into no other that has a right which it lacks itself, CAP_SYS_PTRACE aside (ptrace(2)). */
export const mayLookInto = (looker: bigint, other: bigint): boolean =>
  (looker & PTRACE) !== 0n || (other & ~looker) === 0n

/** Why this server could not open what a process with our rights has open, or null. */
export const problem = (server: number): string | null => {
  const [theirs, ours] = [effective(server), effective("self")]
  return theirs === null || ours === null || mayLookInto(theirs, ours)
    ? null
    : `the server (pid ${server}) has no CAP_SYS_PTRACE, and so may not open what volumed's holders have open`
}
