import type { Declaration } from "../schema/Declaration.ts"
import type { VolumeId } from "../schema/Ids.ts"

/**
 * The id that a create gives its volume where the account may choose one (safety: design consequence 3). The same for
 * every attempt at the same wish, so that CloudStack itself refuses a second volume; another one for each volume that
 * takes the place of a lost one, for CloudStack gives no id out twice. A UUID of version 8 (RFC 9562), which is what the
 * upper 122 bits of a hash may be.
 *
 * `digest`: hex, at least 32 digits.
 */
export const derive = (digest: (text: string) => string, { binding, uid }: Declaration): VolumeId => {
  const hex = digest(`volume of ${uid} after ${binding.former_id ?? binding.volume_id ?? "none"}`)
  const variant = ((Number.parseInt(hex.slice(16, 17), 16) & 0x3) | 0x8).toString(16)
  const parts = [
    hex.slice(0, 8),
    hex.slice(8, 12),
    `8${hex.slice(13, 16)}`,
    variant + hex.slice(17, 20),
    hex.slice(20, 32)
  ]
  return parts.join("-") as VolumeId
}
