import { spawnSync } from "node:child_process"

/** What GLib itself says of a text, in bytes as latin1. */
export type Verdict =
  | "refused"
  /** Groups in order, each with its keys, and each key's value: as it stands, then as string, boolean, 32- and 64-bit number. */
  | ReadonlyArray<readonly [string, ReadonlyArray<readonly [string, Values]>]>

export interface Values {
  readonly raw: string
  readonly string: string | null
  readonly boolean: boolean | null
  readonly int: number | null
  /** As text: it need not fit a number. */
  readonly long: string | null
}

/** nbd-server brings the library along; Python, which many machines have, is the way to call it without a compiler. */
const PROGRAM = `
import ctypes, json, sys
g = ctypes.CDLL("libglib-2.0.so.0")
g.g_log_set_always_fatal.restype = ctypes.c_int
P, S, N = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t)
def f(name, result, *arguments):
    one = getattr(g, name); one.restype = result; one.argtypes = arguments; return one
new = f("g_key_file_new", P)
free = f("g_key_file_free", None, P)
load = f("g_key_file_load_from_data", ctypes.c_int, P, S, ctypes.c_size_t, ctypes.c_int, P)
groups = f("g_key_file_get_groups", ctypes.POINTER(S), P, N)
keys = f("g_key_file_get_keys", ctypes.POINTER(S), P, S, N, P)
failed = f("g_error_free", None, P)
kinds = [f("g_key_file_get_" + kind, result, P, S, S, ctypes.POINTER(P)) for kind, result in
    [("value", S), ("string", S), ("boolean", ctypes.c_int), ("integer", ctypes.c_int), ("int64", ctypes.c_int64)]]
text = lambda b: b.decode("latin1")
def get(kind, file, group, key):
    error = P()
    value = kind(file, group, key, ctypes.byref(error))
    if error.value is None: return text(value) if isinstance(value, bytes) else value
    failed(error)
def values(file, group, key):
    raw, string, boolean, integer, long = [get(kind, file, group, key) for kind in kinds]
    return dict(raw=raw, string=string, boolean=None if boolean is None else boolean == 1, int=integer,
        long=None if long is None else str(long))
def verdict(one):
    data, file, count = one.encode("latin1"), new(), ctypes.c_size_t()
    # KEEP_COMMENTS and KEEP_TRANSLATIONS, as nbd-server asks for.
    if not load(file, data, len(data), 3, None): return "refused"
    found = groups(file, ctypes.byref(count))
    said = []
    for at in range(count.value):
        amount = ctypes.c_size_t()
        names = keys(file, found[at], ctypes.byref(amount), None)
        each = dict.fromkeys(names[i] for i in range(amount.value))
        said.append([text(found[at]), [[text(key), values(file, found[at], key)] for key in each]])
    free(file)
    return said
json.dump([verdict(one) for one in json.load(sys.stdin)], sys.stdout)
`

/** Null where this machine has no Python to ask it with, which is then said. */
export const read = (texts: ReadonlyArray<string>): ReadonlyArray<Verdict> | null => {
  const { error, status, stderr, stdout } = spawnSync("python3", ["-c", PROGRAM], {
    input: JSON.stringify(texts),
    encoding: "utf8",
    maxBuffer: 512 * 1024 * 1024,
    timeout: 50_000
  })
  if (error === undefined && status === 0) return JSON.parse(stdout) as ReadonlyArray<Verdict>
  const missing = error !== undefined && "code" in error && error.code === "ENOENT"
  if (!missing) throw new Error(`GLib could not be asked (${status}): ${error?.message ?? ""} ${stderr.slice(-2_000)}`)
  process.stdout.write("GLib itself is not asked here: this machine has no python3 to call it with.\n")
  return null
}
