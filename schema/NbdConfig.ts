import * as NbdName from "./NbdName.ts"

/**
 * The grammar of nbd-server's file: a GLib key file (`gkeyfile.c`), and the sections of it that are ours.
 *
 * A text is the file's bytes, one character a byte (latin1), because what others wrote need not be UTF-8 and is kept
 * byte for byte. What we write ourselves is printable ASCII only, so that no name or path can ever become a key.
 */

export interface Pair {
  readonly key: string
  readonly value: string
}

export interface Section {
  readonly name: string
  /** Comments and blank lines before the header, as they are. */
  readonly lead: string
  /** From the header to the end of the last key's line, as it is. */
  readonly body: string
  readonly pairs: ReadonlyArray<Pair>
}

export interface Document {
  /** A byte order mark at the start: GLib 2.74 refuses the file for it, so that a rendering leaves it out. */
  readonly bom: boolean
  readonly sections: ReadonlyArray<Section>
  /** Comments and blank lines after the last key. */
  readonly tail: string
  /** Names with more than one header. GLib reads them as one group, the last value of a key wins. */
  readonly duplicates: ReadonlyArray<string>
}

export type Parsed =
  | { readonly _tag: "Parsed"; readonly document: Document }
  /** `line` counts from 1. */
  | { readonly _tag: "Malformed"; readonly line: number; readonly problem: string }

const BOM = "\xef\xbb\xbf"

/** Every byte of the text is in the document, so `print` gives the same text again. */
export const parse = (text: string): Parsed => {
  const bom = text.startsWith(BOM)
  const sections: Array<{ name: string; lead: string; body: string; pairs: Array<Pair> }> = []
  let pending = ""
  for (const [index, line] of linesOf(bom ? text.slice(BOM.length) : text).entries()) {
    const read = readLine(line)
    const current = sections.at(-1)
    switch (read._tag) {
      case "Comment":
        pending += line
        continue
      case "Header":
        sections.push({ name: read.name, lead: pending, body: line, pairs: [] })
        break
      case "Pair":
        if (current === undefined) return { _tag: "Malformed", line: index + 1, problem: "a key before any section" }
        if (current.name === sections[0]?.name && isOtherEncoding(read)) {
          return { _tag: "Malformed", line: index + 1, problem: "an Encoding that is not UTF-8" }
        }
        current.body += pending + line
        current.pairs.push({ key: read.key, value: read.value })
        break
      case "Wrong":
        return { _tag: "Malformed", line: index + 1, problem: read.problem }
    }
    pending = ""
  }
  return { _tag: "Parsed", document: { bom, sections, tail: pending, duplicates: repeated(sections) } }
}

export const print = (document: Document): string =>
  (document.bom ? BOM : "") + document.sections.map((s) => s.lead + s.body).join("") + document.tail

const linesOf = (text: string): ReadonlyArray<string> => text.match(/[^\n]*\n|[^\n]+$/g) ?? []

const repeated = (sections: ReadonlyArray<{ readonly name: string }>): ReadonlyArray<string> => {
  const seen = new Set<string>()
  const twice = new Set<string>()
  for (const { name } of sections) (seen.has(name) ? twice : seen).add(name)
  return [...twice]
}

/** GLib looks at this key in the first group, whatever the file is for. */
const isOtherEncoding = ({ key, value }: Pair): boolean => key === "Encoding" && !/^utf-8$/i.test(value)

type Line =
  | { readonly _tag: "Comment" }
  | { readonly _tag: "Header"; readonly name: string }
  | { readonly _tag: "Pair"; readonly key: string; readonly value: string }
  | { readonly _tag: "Wrong"; readonly problem: string }

/**
 * One line as `g_key_file_parse_line` reads it. `;` begins no comment, and blanks at the end belong to the value. Behind a
 * header GLib passes over bytes that would go on with a character (80 to BF).
 */
const readLine = (line: string): Line => {
  if (line.includes("\0")) return { _tag: "Wrong", problem: "a NUL byte" }
  const content = line.replace(/\r?\n$/, "").replace(/^[\t\n\f\r ]+/, "")
  if (content === "" || content.startsWith("#")) return { _tag: "Comment" }
  const header = /^\[([^\]]*)\][\x80-\xbf]*(?:[ \t][\x80-\xbf]*)*$/.exec(content)?.[1]
  if (header !== undefined) {
    return header === "" || /[[\x00-\x1f\x7f]/.test(header)
      ? { _tag: "Wrong", problem: "a section name that is empty or holds a bracket or a control character" }
      : { _tag: "Header", name: header }
  }
  const equals = content.indexOf("=")
  if (equals < 1) return { _tag: "Wrong", problem: "neither a section, a key with a value, nor a comment" }
  const key = content.slice(0, equals).replace(/[\t\n\f\r ]+$/, "")
  const locale = /^[^[\]]*[^[\] ](?:\[([^[\]]*)\])?$/.exec(key)
  return locale !== null && /^[\p{L}\p{N}_.@-]*$/u.test(NbdName.textOf(locale[1] ?? ""))
    ? { _tag: "Pair", key, value: content.slice(equals + 1).replace(/^[\t\n\f\r ]+/, "") }
    : { _tag: "Wrong", problem: "a key that is empty or holds a bracket" }
}

/** What GLib hands out for a key of a section: groups of one name are one group, the last value counts, escapes resolved. */
export const valueOf = (document: Document, section: string, key: string): string | null => {
  const pair = document.sections
    .filter((s) => s.name === section)
    .flatMap((s) => s.pairs)
    .findLast((p) => p.key === key)
  if (pair === undefined) return null
  return pair.value.replace(/\\([sntr\\])/g, (_, escape: string) => ESCAPES[escape] ?? escape)
}

const ESCAPES: Readonly<Record<string, string>> = { s: " ", n: "\n", t: "\t", r: "\r", "\\": "\\" }

/** GLib's booleans, blanks at the end aside; absent is nbd-server's default, false. */
export const flagOf = (document: Document, section: string, key: string): boolean =>
  isTrue(valueOf(document, section, key) ?? "false")

const isTrue = (value: string): boolean => /^(true|1)[\t\n\f\r ]*$/.test(value)

/**
 * Why nbd-server itself would refuse a file that GLib can read, or null. It is all or nothing: one bad section and the
 * server does not start (`parse_cfile` in nbd-server.c, tables of 3.24).
 */
export const refusal = (document: Document): string | null => {
  const first = document.sections[0]
  if (first === undefined) return "it holds no section"
  if (first.name !== "generic") return `its first section is [${first.name}], not [generic]`
  return refusalOf(document, (name) => (name === "generic" ? GENERIC_KEYS : EXPORT_KEYS))
}

/** The same for a file of the includedir, of which one refused stops the whole server. An empty one is none; a [generic] in it is an export. */
export const includeRefusal = (document: Document): string | null =>
  document.bom ? "it begins with a byte order mark" : refusalOf(document, () => EXPORT_KEYS)

const refusalOf = (document: Document, tableOf: (name: string) => Keys): string | null => {
  for (const [name, values] of valuesOf(document)) {
    const table = tableOf(name)
    const shown = NbdName.textOf(name)
    if (table === EXPORT_KEYS && !values.has("exportname")) return `[${shown}] has no exportname`
    for (const [keys, grammar, expected] of table) {
      const wrong = keys.find((key) => !grammar(values.get(key) ?? null))
      if (wrong !== undefined) return `${wrong} in [${shown}] is not ${expected}`
    }
    const mixed = MIXED.find((keys) => keys.every((key) => isTrue(values.get(key) ?? "")))
    if (table === EXPORT_KEYS && mixed !== undefined) return `[${shown}] has both ${mixed.join(" and ")}`
  }
  return null
}

/** Values as they stand, by section and key. */
const valuesOf = (document: Document): ReadonlyMap<string, ReadonlyMap<string, string>> => {
  const sections = new Map<string, Map<string, string>>()
  for (const { name, pairs } of document.sections) {
    const values = sections.get(name) ?? new Map<string, string>()
    for (const { key, value } of pairs) values.set(key, value)
    sections.set(name, values)
  }
  return sections
}

/** A value as it stands, null where there is none. */
type Grammar = (value: string | null) => boolean
type Keys = ReadonlyArray<readonly [ReadonlyArray<string>, Grammar, string]>

const isBoolean: Grammar = (value) => value === null || /^(true|false|1|0)[\t\n\f\r ]*$/.test(value)
const isOff: Grammar = (value) => value === null || /^(false|0)[\t\n\f\r ]*$/.test(value)
const isInteger: Grammar = (value) => {
  if (value === null) return true
  const number = Number(/^[\t\n\v\f\r ]*([+-]?\d+)(?:[\t\n\f\r ]|$)/.exec(value)?.[1] ?? "none")
  return number >= -(2 ** 31) && number < 2 ** 31
}
const isSize: Grammar = (value) => value === null || /^[\t\n\v\f\r ]*[+-]?\d+$/.test(value)
const isString: Grammar = (value) =>
  value === null || (NbdName.isUtf8(value) && !/\\(?![sntr])/.test(value.replaceAll("\\\\", "")))
const isStyle: Grammar = (value) => value === null || /^(none|ipliteral|iphash|cidrhash..)/s.test(value)

const STRING = "UTF-8 with no backslash save in \\s, \\n, \\t, \\r and \\\\"
const GENERIC_KEYS: Keys = [
  [["allowlist", "duallisten", "force_tls"], isBoolean, "true or false"],
  [["oldstyle"], isOff, "false"],
  [["max_threads"], isInteger, "a number"],
  [["user", "group", "listenaddr", "port", "includedir", "unixsock"], isString, STRING],
  [["certfile", "keyfile", "cacertfile", "tlsprio"], isString, STRING]
]
const EXPORT_KEYS: Keys = [
  [
    ["readonly", "multifile", "treefiles", "copyonwrite", "waitfile", "sparse_cow", "sync", "flush", "fua"],
    isBoolean,
    "true or false"
  ],
  [["rotational", "temporary", "trim", "datalog", "force_tls", "splice"], isBoolean, "true or false"],
  [["sdp"], isOff, "false"],
  [["maxconnections"], isInteger, "a number"],
  [["filesize"], isSize, "a number"],
  [["exportname", "authfile", "prerun", "postrun", "transactionlog", "cowdir", "listenaddr"], isString, STRING],
  [["virtstyle"], isString, STRING],
  [["virtstyle"], isStyle, "none, ipliteral, iphash or cidrhash with a length"]
]
const MIXED: ReadonlyArray<readonly [string, string]> = [
  ["copyonwrite", "splice"],
  ["copyonwrite", "waitfile"],
  ["datalog", "splice"]
]

/** The line that makes a `[generic]` ours: without it the section is somebody else's and stays as it is. */
const SIGNATURE = "# This [generic] is written by volumed; delete this line to keep your own values."

const hasSignature = (lead: string): boolean => linesOf(lead).some((line) => line.trim() === SIGNATURE)

/** True when there is no `[generic]`, or one that we wrote. */
export const ownsGeneric = (document: Document | null): boolean => {
  const generic = document?.sections.filter((s) => s.name === "generic") ?? []
  return generic.every((s) => hasSignature(s.lead))
}

export interface Listen {
  /** An explicit IPv4 address: unset, 3.24 listens everywhere. */
  readonly host: string
  readonly port: number
}

/** Where the settings want the server, and which of that somebody said: a default gives way to a file that exists. */
export interface Wish extends Listen {
  readonly explicit: { readonly host: boolean; readonly port: boolean }
}

/** What a `[generic]` means for us. */
export interface Judgement {
  /** Where the server is reached once this file, as we leave it, is loaded; also under which address we ask it. */
  readonly listen: Listen
  /** Whom the server becomes once it has read the file; null: nobody else. */
  readonly user: string | null
  /** An explicit setting is narrower than what somebody else wrote: the address that replaces their listenaddr. */
  readonly narrowed: string | null
  /** The server cannot be reached where the settings say, so the file is of no use to us as it is. */
  readonly conflict: string | null
  /** Worth a look, no hindrance. */
  readonly remarks: ReadonlyArray<string>
}

/** Somebody else's values are taken as they run; a setting that was made and means fewer addresses wins over theirs. */
export const judgeGeneric = (document: Document | null, wish: Wish): Judgement => {
  const listen = { host: wish.host, port: wish.port }
  const fine: Judgement = { listen, user: null, narrowed: null, conflict: null, remarks: [] }
  if (document === null || ownsGeneric(document)) return fine
  const conflicting = (conflict: string): Judgement => ({ ...fine, conflict })
  if (flagOf(document, "generic", "force_tls"))
    return conflicting("its [generic] forces TLS, which volumed cannot speak")
  const port = (valueOf(document, "generic", "port") ?? "10809").trim()
  if (wish.explicit.port && port !== String(wish.port)) {
    return conflicting(`its [generic] says port ${port}, the settings say ${wish.port}`)
  }
  if (!/^[1-9]\d{0,4}$/.test(port) || Number(port) > 65_535) return conflicting(`its [generic] says port ${port}`)
  const { addresses, wide } = listening(document)
  const host = hostOf(addresses, wide, wish)
  if (host === null) {
    const conflict = `its [generic] listens on ${addresses.join(", ")}, the settings say ${wish.host}`
    return conflicting(wish.explicit.host ? conflict : `${conflict}, and none of its addresses is a plain IPv4 one`)
  }
  const narrowed = wish.explicit.host && (wide || addresses.length > 1) ? wish.host : null
  const user = valueOf(document, "generic", "user")?.trim() ?? "root"
  return {
    listen: { host, port: Number(port) },
    user: user === "root" ? null : user,
    narrowed,
    conflict: null,
    remarks: [
      ...(wide && narrowed === null ? ["its [generic] listens on every address of this machine"] : []),
      ...(narrowed === null ? [] : [`the next load makes its [generic] listen on ${narrowed} alone, as NBD_HOST says`]),
      ...(user === "root" ? [] : [`its [generic] runs the server as ${user}, who must be able to open the devices`])
    ]
  }
}

/** Where a `[generic]` of somebody else makes the server listen; `wide`: everywhere. */
const listening = (document: Document) => {
  const addresses = (valueOf(document, "generic", "listenaddr") ?? "").split(/[, \t]+/).filter((a) => a !== "")
  return { addresses, wide: addresses.length === 0 || addresses.some((a) => a === "0.0.0.0" || a === "::") }
}

/** The address of the server to ask at; null where there is none that we may use. */
const hostOf = (addresses: ReadonlyArray<string>, wide: boolean, wish: Wish): string | null => {
  if (wide || addresses.includes(wish.host)) return wish.host
  if (wish.explicit.host) return null
  const plain = addresses.find((address) => addressProblem(address) === null)
  return plain ?? (addresses.includes("localhost") ? "127.0.0.1" : null)
}

/** Where a server with this file takes connections, as `address:port`; null where that is everywhere, or not said in numbers. */
export const endpoints = (document: Document | null, wish: Wish): ReadonlyArray<string> | null => {
  const { listen } = judgeGeneric(document, wish)
  if (document === null || ownsGeneric(document)) return [`${wish.host}:${wish.port}`]
  const { addresses, wide } = listening(document)
  const plain = addresses.every((address) => addressProblem(address) === null)
  return wide || !plain ? null : addresses.map((address) => `${address}:${listen.port}`)
}

/** What an explicit NBD_HOST takes away from a file that exists, as sentences. */
export const narrowedListening = (document: Document, wish: Wish): ReadonlyArray<string> => {
  if (judgeGeneric(document, wish).narrowed === null) return []
  const { addresses, wide } = listening(document)
  const now = wide ? "every address of this machine" : addresses.join(", ")
  return [`NBD_HOST=${wish.host}: the server listens on ${now} and will listen on ${wish.host} alone`]
}

/** One export of ours, its name in bytes. */
export interface Export {
  readonly name: string
  readonly path: string
  /** The by-id path, where `path` is the descriptor of a process that opened that: for readers of ours, nbd-server knows no such key. */
  readonly pin?: string
  readonly read_only: boolean
  readonly authfile: string
}

export interface Rendering {
  /** The file as it is; null for a new one. */
  readonly base: Document | null
  readonly listen: Wish
  readonly sentinel: string
  readonly exports: ReadonlyArray<Export>
  /** Names that others chose and that stand elsewhere than in `base` until now: they are kept as they are. */
  readonly moving: ReadonlyArray<string>
  /** Names whose sections leave the file, beside those of `exports`. Every other section stays byte for byte. */
  readonly drop: ReadonlyArray<string>
  /** Where every export's path must lie, unless it is what a holder process has open. */
  readonly by_id_dir: string
}

export type Rendered =
  /** All but the generation marker, which `seal` adds. */
  | { readonly _tag: "Rendered"; readonly body: string }
  | { readonly _tag: "Refused"; readonly problems: ReadonlyArray<string> }

/** The same request on the rendered file gives the same bytes again, whatever the order of its exports. */
export const render = (rendering: Rendering): Rendered => {
  const problems = problemsOf(rendering)
  if (problems.length > 0) return { _tag: "Refused", problems }
  const own = [sentinelSection(NbdName.SENTINEL, rendering.sentinel), ...byName(rendering.exports).map(exportSection)]
  return { _tag: "Rendered", body: foreignPart(rendering) + own.map((lines) => `\n${lines}`).join("") }
}

/**
 * The whole file. A GO on the marker proves that this very file was parsed to its end, for nbd-server takes a file
 * whole or not at all. `hash` is the SHA-256 of `body` in hex, of which 128 bits are used.
 */
export const seal = (body: string, hash: string, sentinel: string): string =>
  `${body}\n${sentinelSection(markerName(hash), sentinel)}`

export const markerName = (hash: string): string => `gen-${hash.slice(0, 32)}`

/**
 * What GLib makes of the text: groups with their keys and values, without comments, blanks and the groups' order. Of two
 * texts with one meaning a server makes the same, so that neither a hand's comment nor the order is a reason to end it.
 */
export const meaning = (text: string): string => {
  const groups = new Map<string, Array<string>>()
  let lines: Array<string> = []
  for (const line of linesOf(text)) {
    const read = readLine(line)
    if (read._tag === "Header") {
      lines = groups.get(read.name) ?? []
      groups.set(read.name, lines)
    } else if (read._tag !== "Comment") lines.push(read._tag === "Pair" ? `${read.key}=${read.value}` : line)
  }
  const names = [...groups.keys()].toSorted()
  return names.flatMap((name) => [`[${name}]`, ...(groups.get(name) ?? [])]).join("\n")
}

/** The marker's name and the text whose meaning's hash it must be; null when the file does not end in a marker. */
export const generation = (
  document: Document
): { readonly marker: string; readonly body: string; readonly hash: string } | null => {
  const last = document.sections.at(-1)
  if (last === undefined || !NbdName.MARKER.test(last.name)) return null
  const text = print(document)
  const end = text.length - document.tail.length
  return { marker: last.name, body: text.slice(0, end - last.body.length), hash: last.name.slice(4) }
}

const byName = (exports: ReadonlyArray<Export>): ReadonlyArray<Export> =>
  [...exports].sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0))

/** What others wrote, in their order, comments that stood beside our sections included; or our own `[generic]`. */
const foreignPart = (rendering: Rendering): string => {
  const leaving = leavingNames(rendering)
  const ours = ownsGeneric(rendering.base)
  const { narrowed } = judgeGeneric(rendering.base, rendering.listen)
  const kept = (rendering.base?.sections ?? []).map((section, index) => {
    if (section.name === "generic" && ours) return unsigned(section.lead)
    if (leaving(section.name)) return trimmed(section.lead)
    if (section.name !== "generic" || narrowed === null) return section.lead + section.body
    return section.lead + relistening(section.body, index === 0 ? narrowed : null)
  })
  const text = trimmed(kept.join("") + (rendering.base?.tail ?? ""))
  if (!ours) return text
  const rest = text.replace(/^(?:[ \t\r]*\n)+/, "")
  return genericSection(rendering.listen) + (rest === "" ? "" : `\n${rest}`)
}

/** Which names leave the file as it is: those that are written anew, and those that go. Takes them in bytes. */
export const leavingNames = (rendering: Rendering): ((name: string) => boolean) => {
  const names = new Set([...rendering.exports.map((e) => e.name), ...rendering.drop])
  return (name) => names.has(name) || NbdName.isHousekeeping(name)
}

/** A `[generic]` of somebody else that listens elsewhere, and is the same in everything besides. */
export const relistening = (body: string, host: string | null): string => {
  const [header = "", ...lines] = linesOf(body)
  const rest = lines.filter((line) => !isListenaddr(line)).join("")
  const ended = header.endsWith("\n") ? header : `${header}\n`
  return host === null ? header + rest : `${ended}listenaddr = ${host}\n${rest}`
}

const isListenaddr = (line: string): boolean => {
  const read = readLine(line)
  return read._tag === "Pair" && read.key === "listenaddr"
}

/** The file of somebody else without these sections, all other bytes as they are. */
export const without = (document: Document, names: ReadonlySet<string>): string =>
  print({
    ...document,
    sections: document.sections.map((one) => (names.has(one.name) ? { ...one, body: "" } : one))
  })

const unsigned = (lead: string): string =>
  trimmed(
    linesOf(lead)
      .filter((line) => line.trim() !== SIGNATURE)
      .join("")
  )

/** Blank lines before our own sections are nobody's content; kept, they would grow with every rendering. */
const trimmed = (text: string): string => {
  const lines = [...linesOf(text)]
  while (lines.at(-1)?.trim() === "") lines.pop()
  const rest = lines.join("")
  return rest === "" || rest.endsWith("\n") ? rest : `${rest}\n`
}

/** The only keys we ever write. `readonly` stands before `exportname`: a file cut in between then loses the export, not its flag. */
type Key =
  | "listenaddr"
  | "port"
  | "allowlist"
  | "max_threads"
  | "readonly"
  | "flush"
  | "fua"
  | "virtstyle"
  | "authfile"
  | "pin"
  | "exportname"

const section = (name: string, pairs: ReadonlyArray<readonly [Key, string]>): string =>
  `[${name}]\n${pairs.map(([key, value]) => `${key} = ${value}\n`).join("")}`

const genericSection = (listen: Listen): string =>
  `${SIGNATURE}\n${section("generic", [
    ["listenaddr", listen.host],
    ["port", String(listen.port)],
    ["allowlist", "false"],
    ["max_threads", "4"]
  ])}`

const sentinelSection = (name: string, path: string): string => section(name, sentinelPairs(path))

const sentinelPairs = (path: string): ReadonlyArray<readonly [Key, string]> => [
  ["readonly", "true"],
  ["virtstyle", "none"],
  ["exportname", path]
]

const exportSection = (one: Export): string => section(one.name, exportPairs(one))

/** `virtstyle = none`: the default reads the path as a format string. `flush`, `fua`: off, clients could not flush at all. */
const exportPairs = (one: Export): ReadonlyArray<readonly [Key, string]> => [
  ["readonly", String(one.read_only)],
  ["flush", "true"],
  ["fua", "true"],
  ["virtstyle", "none"],
  ["authfile", one.authfile],
  ...(one.pin === undefined ? [] : [["pin", one.pin] as const]),
  ["exportname", one.path]
]

/** nbd-server overflows an error buffer on long paths that do not exist. */
export const PATH_LENGTH_MAX = 99

/** Why a path cannot be written into the file, or null. */
export const pathProblem = (path: string): string | null => {
  if (!path.startsWith("/")) return "is not absolute"
  if (path.length > PATH_LENGTH_MAX) {
    return `has ${path.length} characters; nbd-server is only safe with at most ${PATH_LENGTH_MAX}`
  }
  if (/[^\x20-\x7e]/.test(path)) return "holds a control or non-ASCII character"
  if (/[%\\]/.test(path)) return "holds % or \\, which nbd-server rewrites"
  if (path.endsWith(" ")) return "ends in a blank"
  return path.split("/").some((part) => part === "." || part === "..") ? "holds a . or .. part" : null
}

/** What a path of the form `/proc/<pid>/fd/<n>` names: an open file of a process, whatever that is by now. Null for other paths. */
export const pinOf = (path: string): { readonly pid: number; readonly descriptor: number } | null => {
  const [, pid, descriptor] = /^\/proc\/([1-9]\d{0,9})\/fd\/(\d{1,7})$/.exec(path) ?? []
  return pid === undefined || descriptor === undefined ? null : { pid: Number(pid), descriptor: Number(descriptor) }
}

/** Why an export of ours must not lead there, or null: it is no by-id link, nor what a process opened by one. */
const exportPathProblem = ({ path, pin }: Export, by_id_dir: string): string | null => {
  if (pin !== undefined && pinOf(path) === null) return "stands for what is no open file of a process"
  const link = pin ?? path
  const problem = pathProblem(link)
  if (problem !== null) return problem
  const name = link.startsWith(`${by_id_dir}/`) ? link.slice(by_id_dir.length + 1) : ""
  return name === "" || name.includes("/") ? `is no link in ${by_id_dir}` : null
}

const problemsOf = (rendering: Rendering): ReadonlyArray<string> => {
  const { base, by_id_dir, drop, exports, listen, moving, sentinel } = rendering
  const refused = base === null ? null : refusal(base)
  const { conflict } = judgeGeneric(base, listen)
  const standing = new Set([...(base?.sections ?? []).map((s) => s.name), ...moving])
  // Names that we choose are told apart without their case; those that others chose are theirs.
  const folded = repeated(exports.map(({ name }) => ({ name: standing.has(name) ? name : name.toLowerCase() })))
  const nameProblem = (name: string) => {
    if (!standing.has(name)) return NbdName.newProblem(name)
    return /[^\0-\xff]/.test(name) ? "holds what is no byte" : NbdName.claimProblem(NbdName.textOf(name))
  }
  const told = (what: string, problem: string | null) => (problem === null ? [] : [`${what} ${problem}`])
  return [
    ...told("the file cannot be extended:", refused),
    ...told("the file cannot be used:", conflict),
    ...told(`the address ${quoted(listen.host)}`, addressProblem(listen.host)),
    ...told("the port", Number.isInteger(listen.port) && listen.port > 0 && listen.port < 65_536 ? null : "is no port"),
    ...told(`the sentinel's path ${quoted(sentinel)} (in STATE_DIR)`, pathProblem(sentinel)),
    ...folded.map((name) => `the export name ${named(name)} is wanted twice`),
    ...drop.flatMap((name) => (name === "generic" ? ["[generic] cannot be dropped"] : [])),
    ...exports.flatMap((one) => [
      ...told(`the export name ${named(one.name)}`, nameProblem(one.name)),
      ...told(`the path ${quoted(one.pin ?? one.path)} of ${named(one.name)}`, exportPathProblem(one, by_id_dir)),
      ...told(`the authfile ${quoted(one.authfile)} (in NBD_ACL_DIR)`, pathProblem(one.authfile))
    ])
  ]
}

/** Why an address cannot be written into the file or an authfile, or null. On 3.24 a mask in an authfile can match everybody. */
export const addressProblem = (address: string): string | null => {
  const parts = address.split(".")
  const plain = parts.length === 4 && parts.every((part) => /^(0|[1-9]\d{0,2})$/.test(part) && Number(part) <= 255)
  if (!plain) return "is not a single IPv4 address"
  return address === "0.0.0.0" ? "is every address, not one" : null
}

const named = (name: string): string => quoted(NbdName.textOf(name))

const quoted = (text: string): string => JSON.stringify(text.slice(0, 120))
