import { Duration, Effect } from "effect"
import type { Detach } from "../schema/Action.ts"
import type { Declaration } from "../schema/Declaration.ts"
import { type GuestUnavailable, PreconditionLost } from "../schema/Errors.ts"
import { exportNameOf, serialOf } from "../schema/Ids.ts"
import type { BlockDevice, NbdReading } from "../schema/Inventory.ts"
import type { Devices } from "./Devices.ts"
import type { Nbd } from "./Nbd.ts"

/** A look at the server, its processes and the disks; an export's children end within moments. */
const LOOK_LIMIT = Duration.seconds(10)

/** What the kernel has not written by then it goes on writing: the next attempt finds less. */
const FLUSH_LIMIT = Duration.seconds(10)

/**
 * Right before the appliance loses a disk (S11): its export is gone, nobody holds it open, and what was acknowledged to
 * clients is on it. CloudStack asks nobody: it takes a disk away under an open transfer (measured).
 */
export const make =
  (nbd: Pick<Nbd["Type"], "observe">, devices: Pick<Devices["Type"], "flush" | "observe">) =>
  (action: Detach, declaration: Declaration): Effect.Effect<void, PreconditionLost | GuestUnavailable> =>
    Effect.gen(function* () {
      const disk = yield* devices.observe.pipe(
        within(LOOK_LIMIT, "the disks could not be read in time"),
        Effect.flatMap((reading) => diskOf(reading.devices, action))
      )
      const names = [exportNameOf(action.volume_id), declaration.binding.export?.name ?? ""].filter(
        (name) => name !== ""
      )
      const reading = yield* nbd.observe(names).pipe(
        within(LOOK_LIMIT, "the NBD server could not be read in time"),
        Effect.catchTag("NbdUnavailable", (error) => new PreconditionLost({ detail: error.message }))
      )
      const problem = exportProblem(reading, names, disk) ?? holderProblem(reading, disk)
      if (problem !== null) return yield* new PreconditionLost({ detail: problem })
      if (disk === null) return
      if (disk.forbidden !== null) {
        return yield* new PreconditionLost({ detail: `${disk.kernel_path} must not go: ${disk.forbidden}` })
      }
      const late = `${disk.kernel_path} could not be flushed in time; what is left is still being written`
      // A sync that hangs in the kernel cannot be called back: it is left behind.
      yield* devices.flush(disk).pipe(Effect.disconnect, within(FLUSH_LIMIT, late))
    })

const within = (duration: Duration.Duration, detail: string) =>
  Effect.timeoutFail({ duration, onTimeout: () => new PreconditionLost({ detail }) })

/** The disk that was planned for, as it is now; null where none was, and none is here. */
const diskOf = (
  devices: ReadonlyArray<BlockDevice>,
  { device, volume_id }: Detach
): Effect.Effect<BlockDevice | null, PreconditionLost> => {
  const found = devices.filter(({ serial }) => serial === serialOf(volume_id))
  const [disk = null] = found
  if (found.length < 2 && (disk?.identity ?? null) === device) return Effect.succeed(disk)
  const now = found.map(({ identity, kernel_path }) => `${kernel_path} (${identity})`).join(" and ")
  return new PreconditionLost({
    detail: `the volume's disk is ${now === "" ? "not here" : now}, planned for was ${device ?? "none"}`
  })
}

/** By whatever name, whoever wrote it: nothing may lead a new client to the disk. */
const exportProblem = (reading: NbdReading, names: ReadonlyArray<string>, disk: BlockDevice | null): string | null => {
  const served = reading.verifications.find(({ name, outcome }) => names.includes(name) && outcome === "served")
  if (served !== undefined) return `${served.name} is served still`
  const section = reading.sections.find(
    ({ device, name }) => names.includes(name) || (device !== null && device === disk?.identity)
  )
  return section === undefined ? null : `the NBD server's file has ${section.name} still, which leads to the volume`
}

const holderProblem = ({ holders }: NbdReading, disk: BlockDevice | null): string | null => {
  const who = holders.flatMap(({ command, device, peer, pid }) =>
    device === disk?.identity ? [`${peer === null ? command : `a client at ${peer}`} (process ${pid})`] : []
  )
  return who.length === 0 ? null : `${disk?.kernel_path} is held open by ${who.join(", ")}`
}
