/**
 * A test failover of one volume: from the appliance to a test VM, and back with whatever was written there.
 *
 *   npx tsx examples/test-failover.ts VOLUME_ID TEST_VM_ID [--root]
 *   npx tsx examples/test-failover.ts VOLUME_ID TEST_VM_ID --back
 *
 * `--root`: as the root volume of a stopped VM that has none (see test-vm-root-volume.ts). Answers the operation's
 * response as JSON: after `--back` with the device path and the export, which are there again.
 */
import * as Volumed from "volumed"

const { VOLUMED_SERVER: server = "http://127.0.0.1:8090", VOLUMED_TOKEN: token } = process.env
const volumed = Volumed.connect({ server, actor: "test-failover", ...(token ? { token } : {}) })

const completed = async (call: Promise<Volumed.OperationAnswer>) => volumed.waitForCompletion(await call)

const there = async (volumeId: string, testVm: string, asRoot: boolean) => {
  // The export goes before the disk does. Nobody reads the appliance's copy while the test VM writes.
  await completed(volumed.v1.detach(volumeId))
  return completed(asRoot ? volumed.v1.attachRoot(volumeId, testVm) : volumed.v1.attach(volumeId, testVm))
}

const back = (volume_id: string, test_vm_id: string) =>
  completed(volumed.v1.cleanupTestFailover({ volume_id, test_vm_id }))

const [volumeId, testVm, flag] = process.argv.slice(2)
if (volumeId === undefined || testVm === undefined || ![undefined, "--root", "--back"].includes(flag)) {
  throw new Error("usage: test-failover.ts VOLUME_ID TEST_VM_ID [--root | --back]")
}
try {
  const ended = await (flag === "--back" ? back(volumeId, testVm) : there(volumeId, testVm, flag === "--root"))
  process.stdout.write(`${JSON.stringify(ended.response)}\n`)
} catch (error) {
  const { message, code, suggestion } = Volumed.classify(error)
  process.stderr.write(`${code}: ${message}\n  ${suggestion}\n`)
  process.exitCode = 1
}
