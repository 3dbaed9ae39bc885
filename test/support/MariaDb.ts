import { Effect, Redacted, Schedule } from "effect"
import { type ChildProcess, execFile, spawn } from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { promisify } from "node:util"
import * as Mysql from "mysql2/promise"
import type { Target } from "../../src/Store/Mysql.ts"

/** A MariaDB of a test's own: data, socket and port are nobody else's, and it ends with the scope. */
export interface MariaDb {
  readonly dir: string
  readonly port: number
  readonly socket: string
  readonly pid: () => number
  /** A new, empty database on it. */
  readonly database: (name?: string) => Effect.Effect<Target>
  /** Statements as root, on a connection of their own, in the named database. */
  readonly query: (database: string, ...statements: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<unknown>>
  /** `SIGKILL`, waited for. */
  readonly kill: Effect.Effect<void>
  /** After `kill`: the same data again, answering. */
  readonly start: Effect.Effect<void>
}

const DIRECTORIES = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]

const program = (name: string): string => {
  const found = [...(process.env["PATH"] ?? "").split(Path.delimiter), ...DIRECTORIES]
    .map((directory) => Path.join(directory, name))
    .find((file) => Fs.existsSync(file))
  if (found === undefined) throw new Error(`${name} is not installed`)
  return found
}

const freePort = () =>
  new Promise<number>((resolve, reject) => {
    const server = Net.createServer()
    server.once("error", reject)
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      server.close(() => resolve(typeof address === "object" && address !== null ? address.port : 0))
    })
  })

/** The server, with these further options on its command line. */
export const start = (...options: ReadonlyArray<string>) =>
  Effect.acquireRelease(
    Effect.promise(() => begin(options)),
    ({ end }) => Effect.promise(end)
  ).pipe(Effect.map(({ server }) => server))

const begin = async (options: ReadonlyArray<string>) => {
  const dir = Fs.mkdtempSync(Path.join(Os.tmpdir(), "volumed-mariadb-"))
  const data = Path.join(dir, "data")
  const socket = Path.join(dir, "s")
  const user = process.geteuid?.() === 0 ? ["--user=root"] : []
  // A server that starts removes what it takes for left-over temporary tables, another's in a shared directory too.
  const temporary = Path.join(dir, "tmp")
  Fs.mkdirSync(temporary)
  const env = { ...process.env, TMPDIR: temporary }
  await promisify(execFile)(
    program("mariadb-install-db"),
    [
      "--no-defaults",
      ...user,
      `--datadir=${data}`,
      "--auth-root-authentication-method=normal",
      "--skip-test-db",
      "--innodb-log-file-size=8M"
    ],
    { env }
  )
  const port = await freePort()
  let child: ChildProcess
  const launch = async () => {
    child = spawn(
      program("mariadbd"),
      [
        "--no-defaults",
        ...user,
        `--datadir=${data}`,
        `--socket=${socket}`,
        `--port=${port}`,
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--innodb-buffer-pool-size=64M",
        "--innodb-log-file-size=8M",
        ...options
      ],
      { stdio: ["ignore", "ignore", Fs.openSync(Path.join(dir, "log"), "a")], env }
    )
    for (let left = 400; ; left--) {
      try {
        const connection = await Mysql.createConnection({ socketPath: socket, user: "root" })
        await connection.end()
        return
      } catch (cause) {
        if (left === 0 || child.exitCode !== null)
          throw new Error(`MariaDB does not start:\n${Fs.readFileSync(Path.join(dir, "log"), "utf8")}`, { cause })
        await new Promise((resolve) => setTimeout(resolve, 50))
      }
    }
  }
  const ended = () =>
    child.exitCode !== null || child.signalCode !== null
      ? Promise.resolve()
      : new Promise<void>((resolve) => void child.once("exit", () => resolve()))
  const kill = async () => {
    child.kill("SIGKILL")
    await ended()
  }
  await launch()
  let made = 0
  const query = async (database: string, statements: ReadonlyArray<string>) => {
    const connection = await Mysql.createConnection({
      socketPath: socket,
      user: "root",
      ...(database === "" ? {} : { database })
    })
    try {
      const answers: Array<unknown> = []
      for (const statement of statements) answers.push((await connection.query(statement))[0])
      return answers
    } finally {
      await connection.end()
    }
  }
  const server: MariaDb = {
    dir,
    port,
    socket,
    pid: () => child.pid ?? 0,
    query: (database, ...statements) => Effect.promise(() => query(database, statements)),
    database: (name = `t${process.pid}_${(made += 1)}`) =>
      Effect.promise(async () => {
        await query("", [
          `CREATE DATABASE ${name} CHARACTER SET utf8mb4`,
          `CREATE OR REPLACE USER '${name}'@'%' IDENTIFIED BY 'secret of ${name}'`,
          `GRANT ALL ON ${name}.* TO '${name}'@'%'`
        ])
        return {
          host: "127.0.0.1",
          port,
          socket: null,
          user: name,
          password: Redacted.make(`secret of ${name}`),
          database: name,
          tls: null
        }
      }),
    kill: Effect.promise(kill),
    start: Effect.promise(launch).pipe(Effect.retry(Schedule.recurs(1)))
  }
  const end = async () => {
    await kill()
    Fs.rmSync(dir, { recursive: true, force: true })
  }
  return { server, end }
}
