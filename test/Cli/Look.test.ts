import { assert, describe, it } from "@effect/vitest"
import type { Drift } from "../../schema/Api.ts"
import * as Look from "../../src/Cli/Look.ts"
import { clean, plain, table } from "../../src/Cli/Output.ts"
import * as VolumeText from "../../src/Cli/VolumeText.ts"
import { A, B, ready, volume } from "./Sample.ts"

const blocked = { status: "False", category: "blocked", reason: "VmFull", message: "the VM has 32 disks" } as const

describe("what is shown of a volume", () => {
  it("is Ready only for the generation that was observed", () => {
    assert.strictEqual(VolumeText.state(volume("b", A)), "Ready")
    assert.strictEqual(VolumeText.state(volume("b", A, { generation: 2 })), "Accepted")
    assert.isFalse(VolumeText.isReady(volume("b", A, { generation: 2 })))
  })

  it("names the reason while it is not Ready", () => {
    const stuck = volume("b", A, {}, { conditions: [ready(blocked)] })
    assert.strictEqual(VolumeText.state(stuck), "VmFull")
    assert.isTrue(VolumeText.isBlocked(stuck))
    const waiting = volume(
      "b",
      A,
      {},
      { conditions: [ready({ status: "False", category: "progress", reason: "Queued" })] }
    )
    assert.isFalse(VolumeText.isBlocked(waiting))
  })

  it("never passes a simulated export off as one that can be opened", () => {
    const served = volume("b", A).status.export
    assert.isNotNull(served)
    if (served === null) return
    assert.strictEqual(VolumeText.uri(served), `nbd://127.0.0.1:10809/migration-vol-${A}`)
    assert.notInclude(VolumeText.uri({ ...served, simulated: true }), "nbd://")
  })

  it("is a table whose columns stand under each other", () => {
    const lines = VolumeText.list(
      [volume("b", A), volume("c", B, {}, { kernel_path: null, attached_to: null })],
      plain
    ).split("\n")
    assert.match(lines[0] ?? "", /^NAME +STATE +SIZE +ATTACHED TO +DEVICE +EXPORT +NEXT$/u)
    assert.match(lines[1] ?? "", /^b +Ready +2GiB +appliance +\/dev\/vdb +nbd:/u)
    assert.match(lines[2] ?? "", /^c +Ready +2GiB +- +- /u)
    assert.strictEqual(lines[0]?.indexOf("STATE"), lines[1]?.indexOf("Ready"))
  })

  it("cannot forge a line or move the cursor", () => {
    const hostile = "x\n\u001b[31mREADY\u009b2J\u202eabc"
    assert.notMatch(clean(hostile), /[\n\u001b\u009b\u202e]/u)
    assert.strictEqual(table(["A"], [[hostile]]).split("\n").length, 3)
  })
})

describe("drift", () => {
  const known = { state: "known", at: "2026-03-01T12:00:00Z", message: null } as const
  const answer = (over: Partial<Drift> = {}): Drift => ({
    items: [],
    at: known.at,
    sources: { cloudstack: known, guest: known, nbd: known },
    ...over
  })
  const item: Drift["items"][number] = {
    name: volume("b", A).name,
    uid: volume("b", A).uid,
    volume_id: volume("b", A).status.volume_id,
    aspect: "attachment",
    message: "is on no VM, wanted on the appliance",
    first_seen: known.at,
    by: "carol",
    next_actions: ["attach", "export"],
    blocked: null
  }

  it("is nothing, something, or something that is held", () => {
    assert.strictEqual(Look.driftOutcome(answer()), "done")
    assert.strictEqual(Look.driftOutcome(answer({ items: [item] })), "drift")
    const blocked = { reason: "DriftHeld", category: "blocked", message: "held", suggestion: "accept it" } as const
    const repairing = { ...blocked, reason: "OperationInFlight", category: "progress" } as const
    assert.strictEqual(Look.driftOutcome(answer({ items: [item, { ...item, blocked }] })), "held")
    assert.strictEqual(Look.driftOutcome(answer({ items: [item, { ...item, blocked: repairing }] })), "drift")
    assert.include(Look.driftText(answer(), plain), "No drift.")
  })

  it("shows what, since when, by whom and the repair", () => {
    const text = Look.driftText(answer({ items: [item] }), plain)
    assert.include(text, "! b  attachment: is on no VM, wanted on the appliance\n")
    assert.include(text, `since ${known.at}; by carol; repair: attach, export`)
  })

  it("shows what a late effect or another block waits for, and what to do about it", () => {
    const blocked = {
      reason: "LateEffect",
      category: "blocked",
      message: "an attach took effect after its wish was taken back",
      suggestion: "volumed accept b makes this the wish"
    } as const
    const text = Look.driftText(answer({ items: [{ ...item, next_actions: [], blocked }] }), plain)
    assert.include(text, "    LateEffect: an attach took effect after its wish was taken back\n")
    assert.include(text, "      volumed accept b makes this the wish\n")
  })

  it("never says none where a source was not read", () => {
    const blind = answer({
      sources: { cloudstack: { ...known, state: "unread", message: "timeout" }, guest: known, nbd: known }
    })
    assert.strictEqual(Look.driftOutcome(blind), "held")
    assert.include(Look.driftText(blind, plain), "CloudStack is unread: timeout")
    assert.notInclude(Look.driftText(blind, plain), "No drift.\n")
  })
})
