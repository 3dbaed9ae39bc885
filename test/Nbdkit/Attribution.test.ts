import { assert, describe, it } from "@effect/vitest"
import * as Attribution from "../../src/Nbdkit/Attribution.ts"

const connection = (inode: string) => ({ inode, peer: `10.0.0.9:${inode}` })
const seen = (inodes: ReadonlyArray<string>, ...disks: ReadonlyArray<readonly [number, string]>): Attribution.Seen => ({
  connections: inodes.map(connection),
  disks: disks.map(([number, device]) => ({ number, device }))
})
/** What is known after all these looks, one after the other. */
const after = (...looks: ReadonlyArray<Attribution.Seen>): Attribution.Pairs =>
  looks.reduce<Attribution.Pairs>((pairs, look) => Attribution.next(pairs, look), new Map())
const holding = (device: string, ...looks: ReadonlyArray<Attribution.Seen>) => {
  const last = looks.at(-1)
  assert.isDefined(last)
  return Attribution.holding(after(...looks), last, device)?.map(({ inode }) => inode) ?? null
}

describe("which connection of an nbdkit process holds which disk", () => {
  it("is plain where there is one disk, at the first look", () => {
    const one = seen(["1", "2"], [7, "8:16"], [9, "8:16"])
    assert.deepStrictEqual(holding("8:16", one), ["1", "2"])
    assert.isTrue(Attribution.clients(after(one), one).every(({ proven }) => proven))
  })

  it("cannot be told of two that came together, and nobody is named alone", () => {
    const both = seen(["1", "2"], [7, "8:16"], [9, "8:32"])
    assert.isNull(holding("8:16", both, both, both))
    const clients = Attribution.clients(after(both, both), both)
    assert.deepStrictEqual(
      clients.map(({ connections, device, proven }) => [device, proven, connections.length]),
      [
        ["8:16", false, 2],
        ["8:32", false, 2]
      ]
    )
  })

  it("is remembered of those that came one after the other, whoever comes later", () => {
    const first = seen(["1"], [7, "8:16"])
    const second = seen(["1", "2"], [7, "8:16"], [9, "8:32"])
    const third = seen(["2", "1", "3", "4"], [9, "8:32"], [7, "8:16"], [11, "8:16"], [13, "8:48"])
    assert.deepStrictEqual(holding("8:16", first, first, second, second), ["1"])
    assert.deepStrictEqual(holding("8:32", first, first, second, second), ["2"])
    assert.deepStrictEqual(holding("8:32", first, first, second, second, third), ["2"])
    // One of the two that came last has it too, and which of them is not known.
    assert.isNull(holding("8:16", first, first, second, second, third))
  })

  it("comes out when one of two leaves", () => {
    const both = seen(["1", "2"], [7, "8:16"], [9, "8:32"], [11, "8:48"])
    const left = seen(["2"], [9, "8:32"])
    assert.deepStrictEqual(holding("8:32", both, left, left), ["2"])
  })

  it("is not proven by one look beside other disks: the disk may be one that is just being closed", () => {
    const first = seen(["1"], [7, "8:16"])
    const idle = seen(["1", "2"], [7, "8:16"], [9, "8:32"])
    assert.isNull(holding("8:32", first, first, idle))
    // It was closed: who came meanwhile has nothing.
    const closed = seen(["1", "2"], [7, "8:16"])
    assert.deepStrictEqual(holding("8:32", first, first, idle, closed), [])
    assert.deepStrictEqual(Attribution.clients(after(first, first, idle, closed), closed).length, 1)
  })

  it("is not proven where a newcomer may have got the number of a disk that was just being closed", () => {
    const first = seen(["9"], [5, "8:48"])
    // 1 was granted nothing yet; the disk is that of one whose connection has ended.
    const closing = seen(["9", "1"], [5, "8:48"], [7, "8:16"])
    // 2 was granted the same disk, under the number that was free again; 1 another one.
    const reused = seen(["9", "1", "2"], [5, "8:48"], [7, "8:16"], [9, "8:32"])
    assert.isNull(holding("8:16", first, first, closing, reused, reused))
    assert.isNull(holding("8:32", first, first, closing, reused, reused))
  })

  it("takes a connection without an export for none of another disk's, and ends it only where there is one disk", () => {
    const waiting = seen(["1", "2"], [7, "8:16"])
    assert.deepStrictEqual(holding("8:16", waiting), ["1", "2"])
    const known = seen(["1"], [7, "8:16"])
    assert.deepStrictEqual(holding("8:16", known, known, waiting), ["1"])
  })

  it("is forgotten with the connection, even if descriptor and socket numbers come again", () => {
    const first = seen(["1"], [7, "8:16"])
    const other = seen(["2", "3"], [7, "8:32"], [9, "8:16"])
    assert.isNull(holding("8:16", first, first, other))
    const turned = seen(["1", "3"], [7, "8:32"], [9, "8:16"])
    assert.isNull(holding("8:32", first, first, turned))
  })

  it("is nobody of a disk that is not open", () => {
    assert.deepStrictEqual(holding("8:64", seen(["1", "2"], [7, "8:16"], [9, "8:32"])), [])
  })
})
