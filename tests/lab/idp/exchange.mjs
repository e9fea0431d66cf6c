/* RFC 8693 token exchange: an agent trades a person's token for one that says "agent acting for person".
 *
 * The subject token decides who the new token is about; the actor token, when given, who acts: its subject becomes the
 * outermost `act`, and the subject token's own `act` (an earlier delegation) is nested inside (section 4.1). Without
 * an actor token the result has no new actor: impersonation, which section 1.1 allows. */
import { createLocalJWKSet, jwtVerify } from 'jose';
import { errors } from 'oidc-provider';

export const GRANT = 'urn:ietf:params:oauth:grant-type:token-exchange';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const JWT = 'urn:ietf:params:oauth:token-type:jwt';
const PARAMETERS = [
  'subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'audience', 'resource', 'scope',
];

async function verified(name, token, type, { keys, issuer, audience }) {
  if (type !== ACCESS_TOKEN && type !== JWT) {
    throw new errors.InvalidRequest(`${name}_type must be ${ACCESS_TOKEN} or ${JWT}`);
  }
  try {
    const { payload } = await jwtVerify(token, createLocalJWKSet(keys.public), {
      issuer, audience, typ: 'at+jwt', algorithms: ['ES256'], requiredClaims: ['exp', 'sub', 'client_id'],
    });
    return payload;
  } catch (error) {
    throw new errors.InvalidRequest(`${name} is not a valid access token of this issuer: ${error.message}`);
  }
}

/** `claims` is a WeakMap from an access token to its further claims; `resource` is the one protected resource. */
export function register(provider, { keys, claims, resource, lifetime }) {
  const trusted = { keys, issuer: provider.issuer, audience: resource.audience };

  async function handler(ctx) {
    const { client, params } = ctx.oidc;
    if (!params.subject_token || !params.subject_token_type) {
      throw new errors.InvalidRequest('subject_token and subject_token_type are required');
    }
    if (!params.actor_token !== !params.actor_token_type) {
      throw new errors.InvalidRequest('actor_token and actor_token_type go together');
    }
    if (params.requested_token_type && params.requested_token_type !== ACCESS_TOKEN && params.requested_token_type !== JWT) {
      throw new errors.InvalidRequest('only access tokens are issued');
    }
    if ((params.audience ?? resource.audience) !== resource.audience || (params.resource ?? resource.uri) !== resource.uri) {
      throw new errors.InvalidTarget();
    }
    const subject = await verified('subject_token', params.subject_token, params.subject_token_type, trusted);
    const actor = params.actor_token && await verified('actor_token', params.actor_token, params.actor_token_type, trusted);
    if (actor && actor.client_id !== client.clientId) {
      throw new errors.InvalidRequest('the actor token belongs to another client');
    }
    const scopes = new Set(resource.scope.split(' '));
    if ((params.scope ?? '').split(' ').some((scope) => scope && !scopes.has(scope))) {
      throw new errors.InvalidScope('scope exceeds what the resource offers', params.scope);
    }

    const token = new provider.AccessToken({
      accountId: subject.sub,
      client,
      gty: GRANT,
      scope: params.scope,
      // A delegated token does not outlive the one that it was traded for.
      expiresIn: Math.min(lifetime(ctx, client), subject.exp - Math.floor(Date.now() / 1000)),
    });
    token.resourceServer = new provider.ResourceServer(resource.uri, resource);
    const act = actor ? { sub: actor.sub, client_id: actor.client_id, ...(subject.act && { act: subject.act }) } : subject.act;
    claims.set(token, { groups: subject.groups, roles: subject.roles, ...(act && { act }) });
    ctx.oidc.entity('AccessToken', token);
    ctx.body = {
      access_token: await token.save(),
      issued_token_type: ACCESS_TOKEN,
      token_type: token.tokenType,
      expires_in: token.expiration,
      scope: token.scope,
    };
  }

  provider.registerGrantType(GRANT, handler, PARAMETERS);
}
