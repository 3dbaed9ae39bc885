import * as Cookies from "@effect/platform/Cookies"
import * as Headers from "@effect/platform/Headers"
import * as HttpClientError from "@effect/platform/HttpClientError"
import type * as HttpClientRequest from "@effect/platform/HttpClientRequest"
import * as HttpClientResponse from "@effect/platform/HttpClientResponse"
import * as HttpIncomingMessage from "@effect/platform/HttpIncomingMessage"
import * as UrlParams from "@effect/platform/UrlParams"
import { Effect, Inspectable, Option, Stream } from "effect"

/**
 * A response whose body is already here. The platform's own in-memory response reads its body through a promise, which
 * a TestClock does not wait for.
 */
class MemoryResponse extends Inspectable.Class implements HttpClientResponse.HttpClientResponse {
  readonly [HttpIncomingMessage.TypeId]: HttpIncomingMessage.TypeId = HttpIncomingMessage.TypeId
  readonly [HttpClientResponse.TypeId]: HttpClientResponse.TypeId = HttpClientResponse.TypeId
  readonly request: HttpClientRequest.HttpClientRequest
  readonly status: number
  readonly headers: Headers.Headers
  readonly cookies = Cookies.empty
  readonly remoteAddress = Option.none<string>()
  readonly #body: string

  constructor(
    request: HttpClientRequest.HttpClientRequest,
    from: { readonly status: number; readonly headers: Readonly<Record<string, string>>; readonly body: string }
  ) {
    super()
    this.request = request
    this.status = from.status
    this.headers = Headers.fromInput(from.headers)
    this.#body = from.body
  }

  override toJSON(): unknown {
    return { _id: "MemoryResponse", status: this.status, headers: this.headers }
  }

  get text(): Effect.Effect<string> {
    return Effect.succeed(this.#body)
  }

  get json(): Effect.Effect<unknown, HttpClientError.ResponseError> {
    return Effect.try({
      try: (): unknown => (this.#body === "" ? null : JSON.parse(this.#body)),
      catch: (cause) => this.#undecodable(cause)
    })
  }

  get urlParamsBody(): Effect.Effect<UrlParams.UrlParams> {
    return Effect.succeed(UrlParams.fromInput(new URLSearchParams(this.#body)))
  }

  get formData(): Effect.Effect<never, HttpClientError.ResponseError> {
    return Effect.fail(this.#undecodable("no form data"))
  }

  get arrayBuffer(): Effect.Effect<ArrayBuffer> {
    return Effect.succeed(new TextEncoder().encode(this.#body).buffer)
  }

  get stream(): Stream.Stream<Uint8Array> {
    return Stream.make(new TextEncoder().encode(this.#body))
  }

  #undecodable(cause: unknown): HttpClientError.ResponseError {
    return new HttpClientError.ResponseError({ request: this.request, response: this, reason: "Decode", cause })
  }
}

export const make = (
  request: HttpClientRequest.HttpClientRequest,
  from: { readonly status: number; readonly headers: Readonly<Record<string, string>>; readonly body: string }
): HttpClientResponse.HttpClientResponse => new MemoryResponse(request, from)
