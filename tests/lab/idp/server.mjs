/* The lab's OpenID provider. `node server.mjs SETTINGS.json` serves HTTPS, a log-in page for people, and, on the loopback
 * interface, a control port:
 *   GET /ready           the provider answers
 *   POST /rotate         sign with a new key; ?drop=1 withdraws the earlier keys at once */
import { randomBytes, timingSafeEqual } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';

import { Keys } from './keys.mjs';
import { provider } from './provider.mjs';

const settings = JSON.parse(readFileSync(process.argv[2], 'utf-8'));
const keys = new Keys();
const cookieKeys = [randomBytes(32).toString('hex')];
let current;
let serve;

function renew() {
  current = provider(settings, keys, cookieKeys);
  current.on('server_error', (ctx, error) => console.error(error));
  serve = current.callback();
}

function same(given, expected) {
  const [a, b] = [Buffer.from(given), Buffer.from(expected)];
  return a.length === b.length && timingSafeEqual(a, b);
}

async function body(request) {
  const parts = [];
  let length = 0;
  for await (const part of request) {
    length += part.length;
    if (length > 4096) throw new Error('the form is too long');
    parts.push(part);
  }
  return new URLSearchParams(Buffer.concat(parts).toString('utf-8'));
}

const PAGE = `<!doctype html><title>Log in</title><form method="post"><input name="login" placeholder="name">
<input name="password" type="password" placeholder="password"><button>Log in</button></form>`;

async function interaction(request, response) {
  await current.interactionDetails(request, response);
  if (request.method !== 'POST') {
    response.writeHead(200, { 'content-type': 'text/html; charset=utf-8' }).end(PAGE);
    return;
  }
  const form = await body(request);
  const login = form.get('login') ?? '';
  const person = Object.hasOwn(settings.people, login) ? settings.people[login] : undefined;
  if (!person || !same(form.get('password') ?? '', person.password)) {
    response.writeHead(403, { 'content-type': 'text/html; charset=utf-8' }).end(PAGE);
    return;
  }
  await current.interactionFinished(request, response, { login: { accountId: login } }, { mergeWithLastSubmission: false });
}

function answer(request, response) {
  if (!request.url.startsWith('/interaction/')) {
    serve(request, response);
    return;
  }
  interaction(request, response).catch((error) => {
    console.error(error);
    if (!response.headersSent) response.writeHead(400);
    response.end();
  });
}

function control(request, response) {
  const url = new URL(request.url, 'http://localhost');
  if (request.method === 'POST' && url.pathname === '/rotate') {
    const kid = keys.rotate({ drop: url.searchParams.get('drop') === '1' });
    renew();
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ kid }));
  } else {
    response.writeHead(url.pathname === '/ready' ? 204 : 404).end();
  }
}

renew();
const tls = { cert: readFileSync(settings.certificate), key: readFileSync(settings.key) };
const listening = settings.listen.map(
  (host) => new Promise((done) => { https.createServer(tls, answer).listen({ host, port: settings.port, ipv6Only: true }, done); }),
);
await Promise.all(listening);
http.createServer(control).listen(settings.control, '127.0.0.1');
