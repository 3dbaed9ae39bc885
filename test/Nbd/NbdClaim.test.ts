import { assert, describe, it } from "@effect/vitest"
import { createHash } from "node:crypto"
import * as NbdClaim from "../../schema/NbdClaim.ts"
import * as NbdConfig from "../../schema/NbdConfig.ts"
import * as NbdReadBack from "../../schema/NbdReadBack.ts"

const parsed = (text: string): NbdConfig.Document => {
  const result = NbdConfig.parse(text)
  if (result._tag === "Malformed") throw new Error(`line ${result.line}: ${result.problem}`)
  return result.document
}

const wish = (host: string, explicit: { host?: boolean; port?: boolean } = {}, port = 10809): NbdConfig.Wish => ({
  host,
  port,
  explicit: { host: explicit.host ?? false, port: explicit.port ?? false }
})

const judge = (generic: string, wanted: NbdConfig.Wish) =>
  NbdConfig.judgeGeneric(parsed(`[generic]\n${generic}`), wanted)

describe("a [generic] that somebody wrote is taken as it runs", () => {
  it.each([
    ["", "127.0.0.1", 10809],
    ["port = 10810\n", "127.0.0.1", 10810],
    ["listenaddr = 0.0.0.0\nport=9\n", "127.0.0.1", 9],
    ["listenaddr = ::\n", "127.0.0.1", 10809],
    ["listenaddr = 10.0.0.5\n", "10.0.0.5", 10809],
    ["listenaddr = ::1, 10.0.0.5 10.0.0.6\n", "10.0.0.5", 10809],
    ["listenaddr = 10.0.0.5,127.0.0.1\n", "127.0.0.1", 10809],
    ["listenaddr = localhost\n", "127.0.0.1", 10809]
  ])("where nothing is set: %j", (generic, host, port) => {
    const { conflict, listen, narrowed } = judge(generic, wish("127.0.0.1"))
    assert.deepStrictEqual({ conflict, listen, narrowed }, { conflict: null, listen: { host, port }, narrowed: null })
  })

  it("but for an address or a port that we cannot ask at, and for TLS", () => {
    for (const generic of [
      "listenaddr = ::1\n",
      "listenaddr = nbd.example\n",
      "port = nbd\n",
      "port = 0\n",
      "port = 70000\n"
    ]) {
      assert.isNotNull(judge(generic, wish("127.0.0.1")).conflict, generic)
    }
    assert.include(judge("force_tls = true\n", wish("127.0.0.1")).conflict ?? "", "TLS")
  })

  it("and a default that differs is no conflict, a setting that differs is one", () => {
    const file = "listenaddr = 10.0.0.5\nport = 10810\n"
    assert.isNull(judge(file, wish("127.0.0.1")).conflict)
    assert.include(judge(file, wish("127.0.0.1", { port: true })).conflict ?? "", "port 10810")
    assert.include(judge(file, wish("127.0.0.1", { host: true })).conflict ?? "", "10.0.0.5")
  })

  it("until NBD_HOST is set and means fewer addresses", () => {
    for (const wide of ["", "listenaddr = ::\n", "listenaddr = 10.0.0.5, 127.0.0.1\n"]) {
      const { conflict, narrowed } = judge(wide, wish("127.0.0.1", { host: true }))
      assert.deepStrictEqual({ conflict, narrowed }, { conflict: null, narrowed: "127.0.0.1" }, wide)
    }
    assert.isNull(judge("listenaddr = 127.0.0.1\n", wish("127.0.0.1", { host: true })).narrowed)
  })
})

describe("a narrower NBD_HOST", () => {
  const sentinel = "/var/lib/volumed/sentinel.img"
  const render = (text: string, listen: NbdConfig.Wish) => {
    const request = {
      base: parsed(text),
      listen,
      sentinel,
      exports: [],
      moving: [],
      drop: [],
      by_id_dir: "/dev/disk/by-id"
    }
    const result = NbdConfig.render(request)
    if (result._tag === "Refused") throw new Error(result.problems.join("; "))
    const hash = createHash("sha256").update(result.body, "latin1").digest("hex")
    const sealed = NbdConfig.seal(result.body, hash, sentinel)
    return { sealed, disagreement: (other: string) => NbdReadBack.disagreement(other, request) }
  }
  const other = "# theirs\n[x]\nexportname = /srv/x\nlistenaddr = kept, for it means nothing here\n"
  const text = `# mine\n[generic]\n\tlistenaddr = 0.0.0.0\n# note\nuser = nbd\r\nallowlist = true\n${other}`

  it("changes the address alone, every other byte stays, and doing it again changes nothing (N13, S13)", () => {
    const { sealed, disagreement } = render(text, wish("127.0.0.1", { host: true }))
    const head = `# mine\n[generic]\nlistenaddr = 127.0.0.1\n# note\nuser = nbd\r\nallowlist = true\n${other}`
    assert.isTrue(sealed.startsWith(head), sealed)
    assert.isNull(disagreement(sealed))
    assert.strictEqual(render(sealed, wish("127.0.0.1", { host: true })).sealed, sealed)
    assert.isNotNull(disagreement(sealed.replace("user = nbd", "user = root")))
    assert.isNotNull(disagreement(sealed.replace("listenaddr = 127.0.0.1", "listenaddr = 127.0.0.2")))
  })

  it("is nothing where it is only the default", () => {
    assert.isTrue(render(text, wish("127.0.0.1")).sealed.startsWith(text))
  })
})

describe("what explicit settings take away", () => {
  const settings = (explicit: Partial<Record<"host" | "port" | "allow", boolean>>) => ({
    acl_dir: "/etc/nbd-server/acl",
    host: "10.0.0.5",
    port: 10809,
    allow: ["10.0.0.7"],
    explicit: { host: false, port: false, allow: false, ...explicit }
  })
  const main = parsed(
    `[generic]\n[migration-vm-A]\nexportname = /dev/vdb\n[B]\nexportname = /dev/vdc\nauthfile = /etc/allow\n` +
      `[ours]\nexportname = /dev/disk/by-id/x\nauthfile = /etc/nbd-server/acl/ours\n`
  )
  const included = [parsed("[caf\xe9]\nexportname = /dev/vdd\n")]

  it("is nothing while none is set", () => {
    assert.deepStrictEqual(NbdClaim.narrowings(main, included, settings({})), [])
  })

  it("is said of the addresses, and of every section that admits more now", () => {
    const [address, open, ruled, ...more] = NbdClaim.narrowings(main, included, settings({ host: true, allow: true }))
    assert.isEmpty(more)
    assert.match(address ?? "", /NBD_HOST=10\.0\.0\.5.*every address.*10\.0\.0\.5 alone/)
    assert.match(open ?? "", /NBD_ALLOW=10\.0\.0\.7.*\[migration-vm-A\], \[caf\uf7e9\], where now everybody/)
    assert.match(ruled ?? "", /\[B\], where now an authfile/)
  })

  it("is said of a section of somebody's whose authfile lies beside ours, and not of ours", () => {
    const hashed = "_0123456789abcdef0123456789abcdef"
    const beside = parsed(
      `[generic]\n[old]\nexportname = /dev/vdb\nauthfile = /etc/nbd-server/acl/hosts\n` +
        `[a/b]\nexportname = /dev/vdc\nauthfile = /etc/nbd-server/acl/${hashed}\n`
    )
    const said = NbdClaim.narrowings(beside, [], settings({ allow: true }))
    assert.lengthOf(said, 1)
    assert.match(said[0] ?? "", /denied in \[old\], where now an authfile/)
  })

  it("names at most a few", () => {
    const many = Array.from({ length: 40 }, (_, i) => `[s${i}]\nexportname = /dev/x\n`).join("")
    const said = NbdClaim.narrowings(parsed(`[generic]\n${many}`), [], settings({ allow: true })).join()
    assert.include(said, "[s4] and 35 more")
  })
})

describe("a section that must not become ours", () => {
  const obstacle = (lines: string, name = "x") =>
    NbdClaim.obstacle(parsed(`[generic]\n[${name}]\nexportname = /dev/vdb\n${lines}`), name)

  it.each([
    "readonly = true\n",
    "copyonwrite = false\nmultifile = false\n",
    "flush = 1\nmaxconnections = 4\n",
    "authfile = /a\n"
  ])("is none with %j", (lines) => assert.isNull(obstacle(lines)))

  it.each([
    ["prerun = /bin/check %s\n", "prerun"],
    ["postrun =\n", "postrun"],
    ["force_tls = true\n", "TLS"],
    ["copyonwrite = 1\n", "copyonwrite"],
    ["multifile = true\n", "multifile"],
    ["temporary = true\n", "temporary"],
    ["filesize = 4096\n", "filesize"]
  ])("has %j: more would be let in, or other bytes served (S3)", (lines, word) => {
    assert.include(obstacle(lines) ?? "", word)
  })

  it("has a name that cannot be kept", () => {
    assert.include(obstacle("", "x".repeat(256)) ?? "", "256 bytes")
  })
})
