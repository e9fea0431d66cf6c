/* One oidc-provider instance from the lab's settings. A new instance is made when the keys rotate. */
import { Provider } from 'oidc-provider';

import { GRANT, register } from './exchange.mjs';

const LIFETIME = 600; // seconds

/** Seconds that an access token lives: the client's own, and less if the request's form asks for it (an extension of this lab). */
function lifetime(ctx, client) {
  const allowed = client.lifetime ?? LIFETIME;
  const asked = Number.parseInt(ctx.oidc.body?.lifetime ?? '', 10);
  return asked > 0 ? Math.min(asked, allowed) : allowed;
}

/** `settings`: issuer, audience, clients (with groups, roles, lifetime), people (password, groups, roles). */
export function provider(settings, keys, cookieKeys) {
  const claims = new WeakMap();
  const resource = {
    uri: `urn:${settings.audience}`,
    audience: settings.audience,
    scope: 'record',
    accessTokenFormat: 'jwt',
    jwt: { sign: { alg: 'ES256', kid: keys.signing } },
  };
  const instance = new Provider(settings.issuer, {
    jwks: keys.private,
    clients: settings.clients.map((client) => ({
      response_types: [], redirect_uris: [], grant_types: ['client_credentials', GRANT], ...client,
    })),
    extraClientMetadata: { properties: ['groups', 'roles', 'lifetime'] },
    clientDefaults: { id_token_signed_response_alg: 'ES256' },
    scopes: ['openid'],
    cookies: { keys: cookieKeys },
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => resource.uri,
        getResourceServerInfo: () => resource,
        useGrantedResource: () => true,
      },
    },
    findAccount: (ctx, id) => settings.people[id] && { accountId: id, claims: () => ({ sub: id }) },
    interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
    // Logging in is consent enough: the lab's only resource is the recorder.
    async loadExistingGrant(ctx) {
      const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
      grant.addOIDCScope('openid');
      grant.addResourceScope(resource.uri, resource.scope);
      await grant.save();
      return grant;
    },
    extraTokenClaims(ctx, token) {
      const who = settings.people[token.accountId] ?? token.client;
      return claims.get(token) ?? { groups: who.groups ?? [], roles: who.roles ?? [] };
    },
    ttl: {
      AccessToken: (ctx, token, client) => lifetime(ctx, client),
      ClientCredentials: (ctx, token, client) => lifetime(ctx, client),
      AuthorizationCode: 60,
      Grant: 3600,
      IdToken: 600,
      Interaction: 600,
      Session: 3600,
    },
  });
  register(instance, { keys, claims, resource, lifetime });
  return instance;
}
