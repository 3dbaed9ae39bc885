import { Effect, Either, Redacted } from "effect"
import { isIPv6 } from "node:net"
import { Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as File from "../Settings/File.ts"
import { isLoopback } from "../Settings/Value.ts"
import type * as Mysql from "./Mysql.ts"

export const EXAMPLE = "sqlite:/var/lib/volumed/volumed.db"
export const EXAMPLE_MYSQL = "user:pass@tcp(127.0.0.1:3306)/db?parseTime=true"

/** What a `DATABASE_DSN` names. `warnings` are sentences about options that do not do here what they say. */
export type Dsn =
  | { readonly _tag: "Sqlite"; readonly file: string }
  | { readonly _tag: "Mysql"; readonly target: Mysql.Target; readonly warnings: ReadonlyArray<string> }

const PORT = 3306

/**
 * `sqlite:FILE`, `mysql://user:pass@host:port/db?…`, or the form of Go's driver, `user:pass@tcp(host:port)/db?…`. What is
 * wrong is said as the end of "DATABASE_DSN …", and nothing of the text is repeated: any of it may be a password.
 */
export const parse = (text: string): Either.Either<Dsn, string> => {
  if (/[\u0000-\u001f\u007f]/.test(text)) return Either.left("holds a control character")
  if (text.startsWith("sqlite:")) return sqlite(text)
  if (text.startsWith("mysql://")) return Either.flatMap(fromUrl(text), assemble)
  return Either.flatMap(fromGo(text), assemble)
}

/** What is wrong with a `DATABASE_DSN`; null when it can be used. */
export const problemOf = (text: string): string | null =>
  Either.match(parse(text), { onLeft: (problem) => problem, onRight: () => null })

/** `sqlite://…` is a file too, and `sqlite::memory:` is gone when the process ends. */
const sqlite = (text: string): Either.Either<Dsn, string> => {
  const file = text.slice("sqlite:".length).replace(/^\/\/(?=\/|$)/, "")
  return file === "" ? Either.left("names no file") : Either.right({ _tag: "Sqlite", file })
}

/** The same with the certificates that `DATABASE_CA_FILE` names; its problem is one of a setting. */
export const resolve = (
  dsn: Redacted.Redacted<string>,
  ca_file: Settings["database_ca_file"]
): Effect.Effect<Dsn, Misconfigured> =>
  Effect.gen(function* () {
    const parsed = yield* Either.mapLeft(parse(Redacted.value(dsn)), (problem) =>
      wrong("DATABASE_DSN", problem, EXAMPLE)
    )
    if (parsed._tag === "Sqlite" || ca_file === null) return parsed
    const { target } = parsed
    const example = "/etc/volumed/database-ca.pem"
    if (target.tls?.verify !== true)
      return yield* wrong("DATABASE_CA_FILE", "is set, and DATABASE_DSN does not ask for a verified tls=true", example)
    const ca = yield* Either.mapLeft(File.read(ca_file), (problem) =>
      wrong("DATABASE_CA_FILE", `cannot be read: ${problem}`, example)
    )
    return { ...parsed, target: { ...target, tls: { ...target.tls, ca } } }
  })

const wrong = (key: string, problem: string, example: string) =>
  new Misconfigured({ problems: [{ key, problem, example }] })

/** Sentences about options that are not followed, none for a text that is wrong. */
export const warnings = (dsn: Redacted.Redacted<string>): ReadonlyArray<string> =>
  Either.match(parse(Redacted.value(dsn)), {
    onLeft: () => [],
    onRight: (parsed) => (parsed._tag === "Mysql" ? parsed.warnings : [])
  })

/** The wire to the database is encrypted for whoever answers there. */
export const isUnverified = (dsn: Redacted.Redacted<string>): boolean =>
  Either.match(parse(Redacted.value(dsn)), {
    onLeft: () => false,
    onRight: (parsed) => parsed._tag === "Mysql" && parsed.target.tls?.verify === false
  })

/** Where it is, for people: no user, no password, no option. */
export const place = (dsn: Dsn): string => {
  if (dsn._tag === "Sqlite") return dsn.file
  const { socket, host, port, database } = dsn.target
  return `${database} on ${socket ?? `${isIPv6(host) ? `[${host}]` : host}:${port}`}`
}

/** What both written forms come down to. */
interface Parts {
  readonly user: string
  readonly password: string
  readonly socket: string | null
  readonly host: string
  readonly port: number
  readonly database: string
  /** Names in lower case without `-` and `_`. */
  readonly options: ReadonlyArray<readonly [name: string, value: string]>
}

/**
 * As `ParseDSN` of go-sql-driver reads it: the last `/` ends the address, the last `@` before it the password, the first
 * `:` the user; so a password may hold any of them.
 */
const fromGo = (text: string): Either.Either<Parts, string> => {
  const slash = text.lastIndexOf("/")
  const at = slash < 0 ? -1 : text.lastIndexOf("@", slash)
  const address = /^(tcp|unix)?(?:\((.*)\))?$/.exec(text.slice(at + 1, Math.max(slash, 0)))
  if (slash < 0 || address === null || (address[1] === undefined && at < 0))
    return Either.left(`is none of sqlite:FILE, mysql://… and ${EXAMPLE_MYSQL} (a / in an option is written %2F)`)
  const account = text.slice(0, Math.max(at, 0))
  const colon = account.indexOf(":")
  const [, network = "tcp", place = ""] = address
  const [database = "", query = ""] = splitAt(text.slice(slash + 1), "?")
  return Either.all({
    where: network === "unix" ? unix(place) : hostAndPort(place === "" ? "127.0.0.1" : place),
    database: unescaped(database),
    options: optionsIn(query)
  }).pipe(
    Either.map(({ where, ...rest }) => ({
      ...where,
      ...rest,
      user: colon < 0 ? account : account.slice(0, colon),
      password: colon < 0 ? "" : account.slice(colon + 1)
    }))
  )
}

const fromUrl = (text: string): Either.Either<Parts, string> => {
  const url = URL.canParse(text) ? new URL(text) : null
  if (url === null || url.hash !== "")
    return Either.left(
      "is no URL: in mysql://user:pass@host:port/db every sign of a password but letters and digits is percent-encoded"
    )
  return Either.all({
    user: unescaped(url.username),
    password: unescaped(url.password),
    host: unescaped(url.hostname.replace(/^\[|\]$/g, "") || "127.0.0.1"),
    database: unescaped(url.pathname.slice(1)),
    options: optionsIn(url.search.slice(1))
  }).pipe(
    Either.map((parts) => {
      const socket = parts.options.find(([name]) => name === "socket")?.[1] ?? null
      const options = parts.options.filter(([name]) => name !== "socket")
      return { ...parts, socket, options, port: url.port === "" ? PORT : Number(url.port) }
    })
  )
}

const splitAt = (text: string, separator: string): ReadonlyArray<string> => {
  const place = text.indexOf(separator)
  return place < 0 ? [text] : [text.slice(0, place), text.slice(place + 1)]
}

const unescaped = (text: string): Either.Either<string, string> =>
  Either.try({ try: () => decodeURIComponent(text), catch: () => "holds a % that begins no percent-encoded character" })

const optionsIn = (query: string): Either.Either<Parts["options"], string> =>
  Either.all(
    query
      .split("&")
      .filter((part) => part !== "")
      .map((part) => {
        const [name = "", value = ""] = splitAt(part, "=")
        return Either.map(
          unescaped(value.replaceAll("+", " ")),
          (value) => [name.toLowerCase().replaceAll(/[-_]/g, ""), value] as const
        )
      })
  )

type Where = Pick<Parts, "socket" | "host" | "port">

const unix = (path: string): Either.Either<Where, string> =>
  path === "" || path.startsWith("/")
    ? Either.right({ socket: path || "/tmp/mysql.sock", host: "localhost", port: PORT })
    : Either.left("names a unix socket that is no absolute path")

/** `host`, `host:port`, `[v6]`, `[v6]:port`, or a bare IPv6 address, which has no port. */
const hostAndPort = (text: string): Either.Either<Where, string> => {
  if (isIPv6(text)) return Either.right({ socket: null, host: text, port: PORT })
  const match = /^(?:\[([^[\]]+)\]|([^:[\]()]+))(?::(\d{1,5}))?$/.exec(text)
  const host = match?.[1] ?? match?.[2]
  return host === undefined
    ? Either.left("has an address that is none of host, host:port and [IPv6]:port")
    : Either.right({ socket: null, host, port: match?.[3] === undefined ? PORT : Number(match[3]) })
}

const assemble = ({ user, password, options, ...where }: Parts): Either.Either<Dsn, string> => {
  if (user === "") return Either.left("names no user")
  if (where.database === "" || where.database.includes("/")) return Either.left("names no database")
  if (where.port < 1 || where.port > 65_535) return Either.left("has a port that is none from 1 to 65535")
  if (where.socket === null && !/^[A-Za-z0-9._:%-]{1,253}$/.test(where.host)) return Either.left("names no host")
  const near = where.socket !== null || isLoopback(where.host)
  return Either.map(encryption(options, near), ({ tls, notes }) => {
    // Nobody stands between the ends of a socket, and the driver encrypts none.
    const dropped = where.socket !== null && tls !== null
    const target = { ...where, user, password: Redacted.make(password), tls: dropped ? null : tls }
    const warnings = [
      ...notes,
      ...(dropped ? ["its tls is not followed: a unix socket needs none"] : []),
      ...options.flatMap(([name, value]) => remark(name, value))
    ]
    return { _tag: "Mysql", target, warnings }
  })
}

interface Encryption {
  readonly tls: Mysql.Target["tls"]
  readonly notes: ReadonlyArray<string>
}

const verified = { ca: null, verify: true } as const

const plain = (...notes: ReadonlyArray<string>): Encryption => ({ tls: null, notes })
const encrypted = (...notes: ReadonlyArray<string>): Encryption => ({ tls: verified, notes })
const unverified = (...notes: ReadonlyArray<string>): Encryption => ({ tls: { ca: null, verify: false }, notes })

const securities: ReadonlySet<string> = new Set(["tls", "ssl", "sslmode"])

/** Options of other drivers that make no sense without TLS: their certificates, `useSSL`, `requireSSL`. */
const meansTls = ([name, value]: Parts["options"][number]): boolean =>
  name.startsWith("ssl") || (/^(use|require)ssl$/.test(name) && !/^(false|0|no|off)$/i.test(value))

/** Never less than was asked for: only the words `skip-verify` and `preferred` leave a certificate unlooked at. */
const encryption = (options: Parts["options"], near: boolean): Either.Either<Encryption, string> => {
  const asked = options.filter(([name]) => securities.has(name))
  if (asked.length > 1) return Either.left("says twice whether the connection is encrypted")
  const word = asked[0]?.[1].toLowerCase().replaceAll("_", "-") ?? (options.some(meansTls) ? "true" : "false")
  switch (word) {
    case "false":
    case "0":
    case "disabled":
    case "disable":
      return Either.right(plain())
    case "true":
    case "1":
    case "verify-identity":
      return Either.right(encrypted())
    case "required":
    case "require":
    case "verify-ca":
      return Either.right(
        encrypted("its ssl-mode is taken as VERIFY_IDENTITY; tls=skip-verify looks at no certificate")
      )
    case "skip-verify":
      return Either.right(unverified("the database's certificate is not verified (tls=skip-verify)"))
    case "preferred":
      return Either.right(
        near
          ? plain("its tls=preferred is taken as tls=false, for the database is on this machine")
          : unverified(
              "its tls=preferred is taken as tls=skip-verify: the certificate is not verified, a server without TLS refused"
            )
      )
    default:
      return Either.right(
        encrypted(
          "its tls names a configuration of another program: taken as tls=true, with DATABASE_CA_FILE where set"
        )
      )
  }
}

/** Options of either driver that ask for what is done anyway, or for what no one misses here. */
const harmless: ReadonlySet<string> = new Set([
  "parsetime",
  "collation",
  "timeout",
  "connecttimeout",
  "readtimeout",
  "writetimeout",
  "maxallowedpacket",
  "interpolateparams",
  "allownativepasswords",
  "checkconnliveness",
  "clientfoundrows",
  "columnswithalias",
  "rejectreadonly",
  "multistatements",
  "usessl",
  "requiressl"
])

/** A name that is no word is not repeated: it may be what is left of a password. */
const remark = (name: string, value: string): ReadonlyArray<string> => {
  if (securities.has(name) || harmless.has(name)) return []
  if (name === "sslca") return ["its ssl-ca is not followed: name the file by DATABASE_CA_FILE"]
  if (name === "charset") return /^utf8/i.test(value) ? [] : ["its charset is not followed: utf8mb4 is used"]
  if (name === "loc" || name === "timezone")
    return /^(UTC|Z|\+00:00)$/i.test(value) ? [] : [`its ${name} is not followed: times are in UTC`]
  const known = /^[a-z]{1,40}$/.test(name) ? `its option ${name} is not known and` : "an option of it is not known and"
  return [`${known} has no effect`]
}
