/* The provider's signing keys. The first one signs; all of them are published, so that tokens signed before a
 * rotation stay valid until they expire. */
import { generateKeyPairSync, randomUUID } from 'node:crypto';

export class Keys {
  #keys = [];

  constructor() {
    this.rotate();
  }

  /** Sign with a new key from now on; `drop` withdraws the earlier ones at once, as after a compromise. */
  rotate({ drop = false } = {}) {
    const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
    const key = { ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: randomUUID() };
    this.#keys = drop ? [key] : [key, ...this.#keys];
    return key.kid;
  }

  get signing() {
    return this.#keys[0].kid;
  }

  get private() {
    return { keys: this.#keys };
  }

  get public() {
    return { keys: this.#keys.map(({ d, ...rest }) => rest) };
  }
}
