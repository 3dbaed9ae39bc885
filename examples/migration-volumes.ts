/**
 * The volumes that a VM's disks are migrated into, attached to the appliance and exported. Run again it takes up what an
 * earlier run made, by name.
 *
 *   npx tsx examples/migration-volumes.ts VM_NAME DISK_BYTES...
 *
 * Answers one line of JSON for each disk: the volume, its real device path and the export to write to.
 */
import * as Volumed from "volumed"

const GIB = 1024 ** 3
/** What a target gets on top of its disk, for the drivers and boot files that the new hypervisor needs. */
const MARGIN = 5 * GIB

const { VOLUMED_SERVER: server = "http://127.0.0.1:8090", VOLUMED_TOKEN: token } = process.env
const volumed = Volumed.connect({ server, actor: "migration", ...(token ? { token } : {}) })

/** The call's operation, completed. What may pass by itself is asked for again. */
const completed = async (call: () => Promise<Volumed.OperationAnswer>, tries = 3): Promise<Volumed.OperationAnswer> => {
  try {
    return await volumed.waitForCompletion(await call())
  } catch (error) {
    if (tries === 1 || !Volumed.isRetryable(error)) throw error
    return completed(call, tries - 1)
  }
}

/** Names are not unique in CloudStack: two volumes of this one are for a person to tell apart. */
const existing = async (name: string): Promise<Volumed.V1Volume | null> => {
  const found = (await volumed.v1.volumes({ name })).items.filter((volume) => volume.name === name)
  if (found.length > 1) throw new Error(`${found.length} volumes are called ${name}`)
  return found[0] ?? null
}

const volumeFor = async (name: string, bytes: number): Promise<string> => {
  const found = await existing(name)
  if (found !== null && found.size < bytes) throw new Error(`${name} exists with ${found.size} bytes, too few`)
  if (found !== null) return found.volume_id
  return (await completed(() => volumed.v1.create({ name, size: bytes + MARGIN }))).volume_id
}

const prepare = async (disk: string, bytes: number, appliance: string) => {
  const volume_id = await volumeFor(disk, bytes)
  const attached = await completed(() => volumed.v1.attach(volume_id, appliance))
  // An attach that has its device does not wait long for the export: this does.
  const { status } = await volumed.waitForCondition(attached.name, "Exported:True", { timeoutMs: 120_000 })
  const { device_path, kernel_path } = await volumed.v1.device(volume_id)
  const { host, port, name } = status.export ?? {}
  return { disk, volume_id, device_path, kernel_path, export: `nbd://${host}:${port}/${name}` }
}

const [vm, ...sizes] = process.argv.slice(2)
if (vm === undefined || sizes.length === 0 || !sizes.every((size) => /^[1-9]\d*$/.test(size))) {
  throw new Error("usage: migration-volumes.ts VM_NAME DISK_BYTES...")
}
try {
  const { place } = await volumed.plan()
  const disks = sizes.map((size, index) => prepare(`${vm}-disk-${index}`, Number(size), place.appliance_vm_id))
  for (const disk of await Promise.all(disks)) process.stdout.write(`${JSON.stringify(disk)}\n`)
} catch (error) {
  const { message, code, suggestion } = Volumed.classify(error)
  process.stderr.write(`${code}: ${message}\n  ${suggestion}\n`)
  process.exitCode = 1
}
