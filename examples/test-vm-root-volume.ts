/**
 * Deletes the ROOT volume of a stopped test VM, to make room for one that is failed over to it as root. volumed never
 * touches a ROOT volume that it did not attach itself, so it is only asked which one it is; the deed is done on
 * CloudStack directly, with a person's keys.
 *
 *   CLOUDSTACK_API_URL=… CLOUDSTACK_API_KEY=… CLOUDSTACK_SECRET_KEY=… npx tsx examples/test-vm-root-volume.ts VM_ID
 */
import { createHmac } from "node:crypto"
import { setTimeout } from "node:timers/promises"
import * as Volumed from "volumed"

const { VOLUMED_SERVER: server = "http://127.0.0.1:8090", VOLUMED_TOKEN: token } = process.env
const { CLOUDSTACK_API_URL: api, CLOUDSTACK_API_KEY: apikey, CLOUDSTACK_SECRET_KEY: secret } = process.env
const [vmId] = process.argv.slice(2)
if (!api || !apikey || !secret || vmId === undefined) {
  throw new Error("usage: test-vm-root-volume.ts VM_ID, with CLOUDSTACK_API_URL, _API_KEY and _SECRET_KEY set")
}

type Fields = Readonly<Record<string, unknown>>

/** A signed call of CloudStack: HMAC-SHA1 over the sorted parameters in lower case. */
const cloudstack = async (command: string, parameters: Readonly<Record<string, string>>): Promise<Fields> => {
  const sent = new URLSearchParams({ ...parameters, command, apikey, response: "json" })
  sent.sort()
  // Ids and command names alone: nothing whose encoding is in question.
  sent.append("signature", createHmac("sha1", secret).update(sent.toString().toLowerCase()).digest("base64"))
  const response = await fetch(api, { method: "POST", body: sent })
  const answer = Object.values((await response.json()) as Record<string, Fields>)[0] ?? {}
  if (!response.ok) throw new Error(`CloudStack refused ${command}: ${String(answer["errortext"])}`)
  return answer
}

/** CloudStack itself gives up on a job after an hour. */
const JOB_MS_MAX = 3_600_000

/** Until CloudStack has done what it was asked for. */
const finished = async (command: string, { jobid }: Fields): Promise<void> => {
  for (const end = Date.now() + JOB_MS_MAX; Date.now() < end;) {
    const job = await cloudstack("queryAsyncJobResult", { jobid: String(jobid) })
    if (job["jobstatus"] === 1) return
    if (job["jobstatus"] !== 0) throw new Error(`${command} failed: ${JSON.stringify(job["jobresult"])}`)
    await setTimeout(500)
  }
  throw new Error(`${command} is still under way: look for job ${String(jobid)} in CloudStack`)
}

try {
  const volumed = Volumed.connect({ server, actor: "test-vm-root-volume", ...(token ? { token } : {}) })
  const { place } = await volumed.plan()
  if (vmId === place.appliance_vm_id) throw new Error(`${vmId} is the appliance itself`)
  const roots = (await volumed.v1.vmVolumes(vmId)).filter(({ type }) => type === "ROOT")
  const [root] = roots
  if (root === undefined || roots.length > 1) throw new Error(`expected one ROOT volume, found ${roots.length}`)
  const id = root.volume_id
  await finished("detachVolume", await cloudstack("detachVolume", { id }))
  await cloudstack("deleteVolume", { id })
  process.stdout.write(`${JSON.stringify({ deleted: id, name: root.name })}\n`)
} catch (error) {
  process.stderr.write(`${Volumed.classify(error).message}\n`)
  process.exitCode = 1
}
