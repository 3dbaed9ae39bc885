import * as dns from "node:dns"
import * as fs from "node:fs"
import * as net from "node:net"
import type * as HttpClient from "@effect/platform/HttpClient"
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import { Effect, Layer } from "effect"
import { Agent, buildConnector } from "undici"
import { Misconfigured } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"

/**
 * HTTP to CloudStack alone, on undici: bounded connections, certificates always verified, no redirects, no addresses
 * that only a forged name would lead to. Time-outs of a call are the transport's, for the adapter has none.
 */
export const layer = (config: Settings["cloudstack"]): Layer.Layer<HttpClient.HttpClient, Misconfigured> =>
  NodeHttpClient.layerUndiciWithoutDispatcher.pipe(
    Layer.provide(
      Layer.scoped(
        NodeHttpClient.Dispatcher,
        Effect.acquireRelease(agent(config), (agent) => Effect.promise(() => agent.destroy()))
      )
    )
  )

const agent = (config: Settings["cloudstack"]) =>
  Effect.gen(function* () {
    if (config.api_url !== null) yield* judged(config.api_url, config.allow_http)
    const ca = config.ca_file === null ? {} : { ca: yield* certificates(config.ca_file) }
    return new Agent({
      connections: config.connections,
      pipelining: 1,
      keepAliveTimeout: 10_000,
      connect: connector(config.allow_http, ca)
    })
  })

/** Every connection is judged by its own scheme and address, because the URL may come from a row that changes. */
const connector = (allowHttp: boolean, ca: { readonly ca?: string }): buildConnector.connector => {
  const make = (protocol: string) =>
    // Said, for Node would let its environment (NODE_TLS_REJECT_UNAUTHORIZED) answer.
    buildConnector({
      timeout: 5_000,
      lookup: lookup(isAllowed(protocol, allowHttp)),
      rejectUnauthorized: true,
      ...ca
    })
  const secure = make("https:")
  const plain = make("http:")
  return (options, callback) => {
    const host = options.hostname.replace(/^\[|\]$/g, "")
    // The look-up is not asked about an address that is written down.
    if (net.isIP(host) !== 0 && !isAllowed(options.protocol, allowHttp)(host)) return callback(notAllowed(), null)
    return (options.protocol === "https:" ? secure : plain)(options, callback)
  }
}

/** What the settings name stops the start where it can never be right. */
const judged = (text: string, allowHttp: boolean) =>
  Effect.gen(function* () {
    const url = URL.canParse(text) ? new URL(text) : null
    if (url === null || !["http:", "https:"].includes(url.protocol)) {
      return yield* wrongUrl("expected an http or https URL")
    }
    // A name is judged by what it resolves to, each time; an address written down is judged here.
    const host = url.hostname.replace(/^\[|\]$/g, "")
    if (net.isIP(host) !== 0 && !isAllowed(url.protocol, allowHttp)(host)) {
      return yield* wrongUrl(
        isRefused(host)
          ? "expected an address of a CloudStack server, not a link-local or unspecified one"
          : "expected https beyond this machine; CLOUDSTACK_ALLOW_HTTP=true allows plain http"
      )
    }
  })

const wrongUrl = (problem: string) =>
  new Misconfigured({
    problems: [{ key: "CLOUDSTACK_API_URL", problem, example: "https://cloudstack.example.com/client/api" }]
  })

const certificates = (file: string) =>
  Effect.try({
    try: () => fs.readFileSync(file, "utf8"),
    catch: (cause) =>
      new Misconfigured({
        problems: [
          {
            key: "CLOUDSTACK_CA_FILE",
            problem: `cannot be read: ${cause instanceof Error ? cause.message : String(cause)}`,
            example: "/etc/volumed/cloudstack-ca.pem"
          }
        ]
      })
  })

const refused = new net.BlockList()
refused.addSubnet("0.0.0.0", 8, "ipv4")
refused.addSubnet("169.254.0.0", 16, "ipv4")
refused.addAddress("::", "ipv6")
refused.addSubnet("fe80::", 10, "ipv6")
/** EC2's metadata service; the others are link-local. */
refused.addAddress("fd00:ec2::254", "ipv6")

const loopback = new net.BlockList()
loopback.addSubnet("127.0.0.0", 8, "ipv4")
loopback.addAddress("::1", "ipv6")

const isIn = (list: net.BlockList, address: string) => list.check(address, net.isIPv6(address) ? "ipv6" : "ipv4")

const isRefused = (address: string) => isIn(refused, address)

const isAllowed =
  (protocol: string, allowHttp: boolean) =>
  (address: string): boolean =>
    !isRefused(address) && (protocol === "https:" || allowHttp || isIn(loopback, address))

/** The system's look-up, its answers judged: a name may resolve to another address today than at the start. */
const lookup =
  (allowed: (address: string) => boolean): net.LookupFunction =>
  (hostname, options, callback) =>
    dns.lookup(hostname, { ...options, all: true }, (error, found) => {
      if (error !== null) return callback(error, [])
      const usable = found.filter(({ address }) => allowed(address))
      const first = usable[0]
      if (first === undefined) return callback(notAllowed(), [])
      return options.all === true ? callback(null, usable) : callback(null, first.address, first.family)
    })

/** `syscall` says, as for the look-up's own errors, that nothing was sent. */
const notAllowed = (): NodeJS.ErrnoException =>
  Object.assign(new Error("the name resolves to no address that may be used"), {
    code: "EADDRESSREFUSED",
    syscall: "getaddrinfo"
  })
