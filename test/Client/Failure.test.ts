import { assert, describe, it } from "@effect/vitest"
import { statuses } from "../../schema/Api.ts"
import * as Failure from "../../src/Client/Failure.ts"
import { operation } from "./FakeServer.ts"

const apiError = (code: string, error = "because", details = {}) =>
  new Failure.ApiError({ status: 422, code, error, details, request_id: "req-1" })

const failed = (error: string, response?: Readonly<Record<string, unknown>>) =>
  new Failure.OperationFailed({
    operation: operation({ status: "failed", error, ...(response === undefined ? {} : { response }) })
  })

describe("classification", () => {
  it("knows the old clients' classes by their words, in their order", () => {
    const cases = [
      ["CloudStack API error 431: no such zone", "CLOUDSTACK_INVALID_PARAMETER", false],
      ["CloudStack API error 432: over the limit of the device", "CLOUDSTACK_RESOURCE_LIMIT", true],
      ["timeout waiting for the device", "OPERATION_TIMEOUT", true],
      ["no device appeared", "DEVICE_CORRELATION_FAILED", true],
      ["something else", "UNKNOWN_ERROR", false]
    ] as const
    for (const [words, code, retryable] of cases) {
      for (const error of [new Error(words), words, failed(words), operation({ status: "failed", error: words })]) {
        const classified = Failure.classify(error)
        assert.deepStrictEqual([classified.code, classified.retryable], [code, retryable], words)
      }
    }
  })

  it("goes by the code where there is one, whatever the words", () => {
    assert.strictEqual(Failure.classify(apiError("NOT_FOUND", "no device, timeout")).code, "UNKNOWN_ERROR")
    assert.isFalse(Failure.isRetryable(apiError("NOT_FOUND", "no device, timeout")))
    const error = failed("the disk is not there", { code: "DEVICE_CORRELATION_FAILED" })
    assert.strictEqual(Failure.classify(error).code, "DEVICE_CORRELATION_FAILED")
    assert.strictEqual(Failure.classify(failed("a device", { code: "UNKNOWN_ERROR" })).code, "UNKNOWN_ERROR")
  })

  it("has a verdict on every code of the contract, and retries only what may pass by itself", () => {
    const words = "timeout of a device" // Would be retryable, were the code not known.
    const retryable = Object.keys(statuses).filter((code) => Failure.isRetryable(apiError(code, words)))
    assert.sameMembers(retryable, [
      "REQUEST_TIMEOUT",
      "CLOUDSTACK_RESOURCE_LIMIT",
      "RATE_LIMITED",
      "CLOUDSTACK_UNAVAILABLE",
      "DATABASE_UNAVAILABLE",
      "STANDBY",
      "OVERLOADED"
    ])
  })

  it("retries a server that is away, not one that is no volumed", () => {
    const at = (transient: boolean) => new Failure.ServerUnreachable({ server: "s", detail: "timeout", transient })
    assert.isTrue(Failure.isRetryable(at(true)))
    assert.isFalse(Failure.isRetryable(at(false)))
  })

  it("takes a waiting that ended for a time-out, and a cancelled operation for final", () => {
    const id = operation().id
    const late = new Failure.OperationTimedOut({ id, operation: operation(), timeout_ms: 1000 })
    assert.deepStrictEqual([Failure.classify(late).code, Failure.isRetryable(late)], ["OPERATION_TIMEOUT", true])
    assert.include(late.message, "the daemon goes on")
    const cancelled = new Failure.OperationCancelled({
      operation: operation({ status: "cancelled", error: "timeout" })
    })
    assert.isFalse(Failure.isRetryable(cancelled))
  })
})

describe("suggestions", () => {
  it("are the daemon's own where it made one", () => {
    assert.strictEqual(Failure.suggestion(apiError("CONFLICT", "x", { suggestion: "ask Ann" })), "ask Ann")
    assert.strictEqual(Failure.suggestion(failed("timeout", { suggestion: "free the disk" })), "free the disk")
  })

  it("else are one for each class, never none", () => {
    const words = ["CloudStack API error 431", "CloudStack API error 432", "timeout", "device", "", "x"]
    const found = words.map((text) => Failure.suggestion(new Error(text)))
    assert.strictEqual(new Set(found).size, 5)
    for (const suggestion of found) assert.isAbove(suggestion.length, 10)
  })
})
