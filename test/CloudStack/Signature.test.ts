import { assert, describe, it } from "@effect/vitest"
import { Redacted } from "effect"
import * as FastCheck from "effect/FastCheck"
import * as Signature from "../../src/CloudStack/Signature.ts"

/**
 * Computed with Java's own URLEncoder, toLowerCase and Mac (17), as `ApiServer.verifyRequest` does, not with our code.
 */
const secret = Redacted.make("Secret/Key+0123456789=")
const apikey = "Api-Key_0123456789"
const vectors = [
  {
    label: "a listing",
    parameters: {
      command: "listVolumes",
      apikey,
      response: "json",
      signatureversion: "3",
      expires: "2026-11-20T12:00:00.000Z",
      listall: "true",
      page: "1",
      pagesize: "500"
    },
    canonical:
      "apikey=api-key_0123456789&command=listvolumes&expires=2026-11-20t12%3a00%3a00.000z&listall=true&page=1&pagesize=500&response=json&signatureversion=3",
    signature: "inHnB1v58tJ5PD6k/+mbYxYyvcc="
  },
  {
    label: "a name with every character that encoders disagree about",
    parameters: {
      command: "createVolume",
      apikey,
      response: "json",
      signatureversion: "3",
      expires: "2026-11-20T12:00:00.000Z",
      name: "a*b~c!d'e(f)g h+i/j=k&l%m.n-o_p",
      size: "10"
    },
    canonical:
      "apikey=api-key_0123456789&command=createvolume&expires=2026-11-20t12%3a00%3a00.000z&name=a*b%7ec%21d%27e%28f%29g%20h%2bi%2fj%3dk%26l%25m.n-o_p&response=json&signatureversion=3&size=10",
    signature: "eomejDUFwardyS5sdgj4BozsM9g="
  },
  {
    label: "a name beyond ASCII",
    parameters: { command: "createVolume", apikey, response: "json", name: "Größe 测试 \u{1f4be} \u0130" },
    canonical:
      "apikey=api-key_0123456789&command=createvolume&name=gr%c3%b6%c3%9fe%20%e6%b5%8b%e8%af%95%20%f0%9f%92%be%20%c4%b0&response=json",
    signature: "CoLPzQyXHIxXUDmZ9W88sBh7jjE="
  },
  {
    label: "tags, the tenth between the zeroth and the first",
    parameters: {
      command: "createTags",
      apikey,
      response: "json",
      resourceids: "0f8e2b3a-1111-4222-8333-444455556666",
      resourcetype: "Volume",
      "tags[0].key": "a",
      "tags[0].value": "1",
      "tags[1].key": "b",
      "tags[1].value": "2",
      "tags[2].key": "c",
      "tags[2].value": "3",
      "tags[10].key": "Z",
      "tags[10].value": "x y"
    },
    canonical:
      "apikey=api-key_0123456789&command=createtags&resourceids=0f8e2b3a-1111-4222-8333-444455556666&resourcetype=volume&response=json&tags[0].key=a&tags[0].value=1&tags[10].key=z&tags[10].value=x%20y&tags[1].key=b&tags[1].value=2&tags[2].key=c&tags[2].value=3",
    signature: "Bru1TjUqWBXTsVe5VTVXsy8sWMo="
  }
]

describe("the signature", () => {
  for (const vector of vectors) {
    it(`of ${vector.label} is what Java computes`, () => {
      assert.strictEqual(Signature.canonical(vector.parameters), vector.canonical)
      assert.strictEqual(Signature.signature(vector.parameters, secret), vector.signature)
    })
  }

  it("does not depend on the order in which parameters are given", () => {
    const entries = FastCheck.uniqueArray(
      FastCheck.tuple(FastCheck.stringMatching(/^[a-z][a-z0-9.[\]]{0,12}$/), FastCheck.fullUnicodeString()),
      { selector: ([name]) => name, minLength: 2 }
    )
    FastCheck.assert(
      FastCheck.property(
        entries.chain((all) =>
          FastCheck.tuple(FastCheck.constant(all), FastCheck.shuffledSubarray(all, { minLength: all.length }))
        ),
        ([all, shuffled]) => {
          assert.strictEqual(
            Signature.signedBody(Object.fromEntries(all), secret),
            Signature.signedBody(Object.fromEntries(shuffled), secret)
          )
        }
      )
    )
  })

  it("is made over what is sent, whatever the value: the form decodes to the values that were signed", () => {
    FastCheck.assert(
      FastCheck.property(FastCheck.fullUnicodeString(), FastCheck.string16bits(), (value, broken) => {
        const form = new URLSearchParams(Signature.signedBody({ name: value, other: broken }, secret))
        const sent = { name: form.get("name") ?? "", other: form.get("other") ?? "" }
        assert.strictEqual(sent.name, value)
        assert.strictEqual(form.get("signature"), Signature.signature(sent, secret))
      })
    )
  })
})
