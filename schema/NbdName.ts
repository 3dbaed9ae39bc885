/**
 * Names of exports. nbd-server knows bytes; tables and answers know text. A byte that is no part of UTF-8 becomes one
 * character of its own (U+F780 to U+F7FF, private use), so that a name that somebody else chose keeps its bytes, and has
 * never more characters than bytes. Bytes are written one character a byte (latin1), as everywhere in `NbdConfig`.
 */

/** The text for these bytes: `bytesOf` gives the same bytes back, whatever they are. */
export const textOf = (bytes: string): string =>
  bytes.replace(PIECE, (piece) => {
    const plain = piece.length > 1 ? utf8.decode(Uint8Array.from(piece, (byte) => byte.charCodeAt(0))) : null
    return plain === null || STAND_IN.test(plain) ? [...piece].map(standIn).join("") : plain
  })

/** Without a byte that is no part of a character, which GLib refuses in a value. */
export const isUtf8 = (bytes: string): boolean =>
  !/[\x80-\xff]/.test(bytes.replace(PIECE, (piece) => (piece.length > 1 ? "" : piece)))

export const bytesOf = (text: string): string =>
  text.replace(/[^\x00-\x7f]+/g, (run) =>
    [...run]
      .map((character) =>
        STAND_IN.test(character)
          ? String.fromCharCode(character.charCodeAt(0) - STAND_INS)
          : String.fromCharCode(...new TextEncoder().encode(character))
      )
      .join("")
  )

const utf8 = new TextDecoder("utf-8", { ignoreBOM: true })
/** U+F780 stands for the byte 80. */
const STAND_INS = 0xf700
const STAND_IN = /^[\uf780-\uf7ff]$/

const standIn = (byte: string): string => String.fromCharCode(STAND_INS + byte.charCodeAt(0))

/** One character of well-formed UTF-8 (RFC 3629, section 4), else one byte that begins none. */
const PIECE =
  /[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}|[\x80-\xff]/g

/** Why a name cannot be given to an export of ours that is new, or null. */
export const newProblem = (name: string): string | null =>
  /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(name)
    ? reserved(name.toLowerCase())
    : "is not 1-63 characters of A-Z a-z 0-9 . _ - starting with a letter or digit"

/** In bytes, as long as a claimed name may be. */
const BYTES_MAX = 255

/** Why a section that somebody else named cannot become ours under that name, or null. Takes text. */
export const claimProblem = (name: string): string | null => {
  const { length } = bytesOf(name)
  if (length === 0 || length > BYTES_MAX) return `has ${length} bytes, not 1-${BYTES_MAX}`
  if (/[\x00-\x1f\x7f-\x9f[\]\ud800-\udfff]/.test(name.replace(/[\ud800-\udbff][\udc00-\udfff]/g, ""))) {
    return "holds a bracket or a control character"
  }
  return reserved(name)
}

const reserved = (name: string): string | null => (name === "generic" || isHousekeeping(name) ? "is reserved" : null)

/** Always in the file: nbd-server does not start without any export, and a GO on it tells a living server from a hung one. */
export const SENTINEL = "volumed-sentinel"
export const MARKER = /^gen-[0-9a-f]{32}$/

/** Sections that hold no volume and that only we write. */
export const isHousekeeping = (name: string): boolean => name === SENTINEL || MARKER.test(name)
