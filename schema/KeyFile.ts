/**
 * A GLib key file as its reader understands it (`gkeyfile.c` of 2.74, checked against the library itself): which groups
 * there are, and what each key of them means. What is rendered by `NbdConfig` is read back by this before anybody may
 * write it, so nothing here is shared with it. A text is bytes, one character a byte.
 */

/** Groups of one name are one, the last value of a key counts. In the order in which they begin; values as they stand. */
export type Groups = ReadonlyMap<string, ReadonlyMap<string, string>>

export type Read =
  | { readonly _tag: "Groups"; readonly groups: Groups }
  /** `line` counts from 1. */
  | { readonly _tag: "Refused"; readonly line: number; readonly problem: string }

export const read = (text: string): Read => {
  const groups = new Map<string, Map<string, string>>()
  let current: { readonly first: boolean; readonly keys: Map<string, string> } | null = null
  const lines = text.split("\n")
  for (const [index, whole] of lines.entries()) {
    const refused = (problem: string): Read => ({ _tag: "Refused", line: index + 1, problem })
    // A carriage return belongs to the end of a line, and what stands behind the last one is not ended.
    const line = index < lines.length - 1 && whole.endsWith("\r") ? whole.slice(0, -1) : whole
    // GLib takes the rest of such a line for nothing, and others may not.
    if (line.includes("\0")) return refused("a NUL byte")
    if (/[^\0-\xff]/.test(line)) return refused("a character that is no byte")
    const content = withoutBlanksBefore(line)
    if (content === "" || content.charAt(0) === "#") continue
    if (isHeader(content)) {
      const name = content.slice(1, content.indexOf("]"))
      if (name === "" || name.includes("[") || hasControl(name)) return refused("a bad group name")
      const keys = groups.get(name) ?? new Map<string, string>()
      groups.set(name, keys)
      current = { first: groups.keys().next().value === name, keys }
      continue
    }
    const equals = content.indexOf("=")
    if (equals < 1) return refused("neither a group, a key with a value, nor a comment")
    if (current === null) return refused("a key before any group")
    const key = withoutBlanksBehind(content.slice(0, equals))
    const value = withoutBlanksBefore(content.slice(equals + 1))
    if (!isKey(key)) return refused("a bad key")
    if (current.first && key === "Encoding" && value.toLowerCase() !== "utf-8") return refused("another encoding")
    current.keys.set(key, value)
  }
  return { _tag: "Groups", groups }
}

/** `g_ascii_isspace`, to which a vertical tab is none. */
const isBlank = (character: string): boolean => character !== "" && " \t\n\f\r".includes(character)

const withoutBlanksBefore = (line: string): string => {
  let from = 0
  while (isBlank(line.charAt(from))) from++
  return line.slice(from)
}

const withoutBlanksBehind = (line: string): string => {
  let to = line.length
  while (isBlank(line.charAt(to - 1))) to--
  return line.slice(0, to)
}

const hasControl = (name: string): boolean =>
  [...name].some((character) => character < " " || character === String.fromCharCode(127))

/** Behind the bracket may stand blanks, and what GLib takes for the rest of a character: it goes by characters, unchecked. */
const isHeader = (content: string): boolean => {
  if (content.charAt(0) !== "[" || !content.includes("]")) return false
  let at = nextCharacter(content, content.indexOf("]"))
  while (content.charAt(at) === " " || content.charAt(at) === "\t") at = nextCharacter(content, at)
  return at >= content.length
}

const nextCharacter = (content: string, at: number): number => {
  let next = at + 1
  while (next < content.length && (content.charCodeAt(next) & 0xc0) === 0x80) next++
  return next
}

/** Anything without brackets, or that and a locale in brackets. Blanks around it are gone already. */
const isKey = (key: string): boolean => {
  const bracket = key.search(/[[\]]/)
  if (bracket < 0) return true
  if (bracket === 0 || key.charAt(bracket) === "]" || key.charAt(bracket - 1) === " ") return false
  const locale = key.slice(bracket + 1, -1)
  return key.endsWith("]") && isUtf8(locale) && /^[\p{L}\p{N}_.@-]*$/u.test(textOf(locale))
}

/** What `g_key_file_get_string` gives out for a value as it stands, in bytes; null where it fails instead. */
export const stringOf = (value: string): string | null => {
  if (!isUtf8(value)) return null
  let string = ""
  for (let at = 0; at < value.length; at++) {
    const character = value.charAt(at)
    if (character !== "\\") {
      string += character
      continue
    }
    const meant = ESCAPED[value.charAt(++at)]
    if (meant === undefined) return null
    string += meant
  }
  return string
}

const ESCAPED: Readonly<Record<string, string>> = { s: " ", n: "\n", t: "\t", r: "\r", "\\": "\\" }

/** Left over once every well-formed character is gone (RFC 3629, section 4): a byte that is part of none. */
const isUtf8 = (bytes: string): boolean =>
  !/[\x80-\xff]/.test(
    bytes.replace(
      /[\xc2-\xdf][\x80-\xbf]|(?:\xe0[\xa0-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]|\xed[\x80-\x9f])[\x80-\xbf]|(?:\xf0[\x90-\xbf]|[\xf1-\xf3][\x80-\xbf]|\xf4[\x80-\x8f])[\x80-\xbf]{2}/g,
      ""
    )
  )

const textOf = (bytes: string): string => utf8.decode(Uint8Array.from(bytes, (byte) => byte.charCodeAt(0)))

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })
