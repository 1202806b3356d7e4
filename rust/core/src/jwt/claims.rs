//! Claims (RFC 7519): what a verified payload must say to be believed.
//!
//! Rules: a registered claim that is present has its registered type even when nobody asked for it; times are JSON
//! numbers between 1970 and the year 9999; `now >= exp` is over; names compare exactly, without trimming or case folding.
//! Our own claims are `roles` (array of unique strings) and `tenant` (string); `sid` names a session.

use std::borrow::Cow;

use crate::error::{Reason, Unusable};
use crate::json::{self, Json, Members};

/// 9999-12-31T23:59:59Z, the last time a date library can name.
const LAST_TIME: f64 = 253_402_300_799.0;
/// More leeway than this is a misconfigured clock, not leeway.
pub const MAX_LEEWAY_S: u32 = 300;

/// What the tokens of a verifier must say.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// The one acceptable `iss`.
    pub issuer: Option<String>,
    /// Must be among `aud`; without it a token that has `aud` is for someone else (RFC 7519 section 4.1.3).
    pub audience: Option<String>,
    /// Seconds a clock may be off.
    pub leeway_s: u32,
    /// Claims that must be present.
    pub required: Vec<String>,
    /// The one acceptable header `typ` (case-insensitive, `application/` may be left out: RFC 7515 section 4.1.9).
    pub typ: Option<String>,
}

/// The members of an acceptable payload, in its order.
#[derive(Clone, Debug)]
pub struct Claims<'a>(pub Members<'a>);

impl<'a> Claims<'a> {
    /// The claim called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Json<'a>> {
        self.0.iter().find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The same claims, free of the payload they were read from.
    #[must_use]
    pub fn into_owned(self) -> Claims<'static> {
        Claims(json::members_into_owned(self.0))
    }
}

impl Expected {
    pub(super) fn check(&self) -> Result<(), Unusable> {
        let given = [&self.issuer, &self.audience, &self.typ];
        if given.into_iter().flatten().any(String::is_empty) {
            return Err(Unusable("issuer, audience and typ are None or not empty"));
        }
        if self.leeway_s > MAX_LEEWAY_S {
            return Err(Unusable("leeway_s is at most 300"));
        }
        Ok(())
    }

    pub(super) fn typ_matches(&self, typ: Option<&str>) -> Result<(), Reason> {
        let Some(expected) = self.typ.as_deref() else {
            return Ok(());
        };
        match typ {
            Some(typ) if bare_type(typ).eq_ignore_ascii_case(bare_type(expected)) => Ok(()),
            _ => Err(Reason::WrongType),
        }
    }

    /// Reads the payload and judges it at `now_s`; also says when the claims end, leeway included.
    pub(super) fn read<'a>(&self, payload: &'a [u8], now_s: f64) -> Result<(Claims<'a>, Option<f64>), Reason> {
        let Ok(Json::Object(members)) = json::parse(payload) else {
            return Err(Reason::InvalidPayload);
        };
        let claims = Claims(members);
        if self.required.iter().any(|name| claims.get(name).is_none()) {
            return Err(Reason::MissingClaim);
        }
        let registered = Registered::among(&claims.0);
        let exp = self.check_times(&registered, now_s)?;
        self.check_parties(&registered)?;
        registered.check_identity()?;
        Ok((claims, exp.map(|exp| exp + f64::from(self.leeway_s))))
    }

    fn check_times(&self, claims: &Registered<'_>, now_s: f64) -> Result<Option<f64>, Reason> {
        let leeway = f64::from(self.leeway_s);
        // Types first: an absurd `nbf` is refused as such even when the token has also expired.
        let [exp, nbf, iat] = [time(claims.exp)?, time(claims.nbf)?, time(claims.iat)?];
        if exp.is_some_and(|exp| now_s >= exp + leeway) {
            return Err(Reason::Expired);
        }
        if nbf.is_some_and(|nbf| now_s < nbf - leeway) {
            return Err(Reason::NotYetValid);
        }
        if iat.is_some_and(|iat| now_s < iat - leeway) {
            return Err(Reason::IssuedInFuture);
        }
        Ok(exp)
    }

    fn check_parties(&self, claims: &Registered<'_>) -> Result<(), Reason> {
        match (claims.iss, self.issuer.as_deref()) {
            (None, None) => {}
            (None, Some(_)) => return Err(Reason::WrongIssuer),
            (Some(Json::Str(issuer)), expected) => {
                if expected.is_some_and(|expected| expected != issuer) {
                    return Err(Reason::WrongIssuer);
                }
            }
            (Some(_), _) => return Err(Reason::InvalidClaim),
        }
        let meant = |audience: &str| self.audience.as_deref() == Some(audience);
        let found = match claims.aud {
            None if self.audience.is_none() => return Ok(()),
            None => false,
            Some(Json::Str(one)) => meant(one),
            Some(Json::Array(many)) => {
                let mut found = false;
                for audience in many {
                    found |= meant(audience.as_str().ok_or(Reason::InvalidClaim)?);
                }
                found
            }
            Some(_) => return Err(Reason::InvalidClaim),
        };
        if found { Ok(()) } else { Err(Reason::WrongAudience) }
    }
}

fn bare_type(typ: &str) -> &str {
    match typ.split_at_checked(12) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") && !rest.contains('/') => rest,
        _ => typ,
    }
}

fn time(claim: Option<&Json<'_>>) -> Result<Option<f64>, Reason> {
    let seconds = match claim {
        None => return Ok(None),
        Some(Json::Int(seconds)) => *seconds as f64,
        Some(Json::Float(seconds)) => *seconds,
        Some(_) => return Err(Reason::InvalidClaim),
    };
    if (0.0..=LAST_TIME).contains(&seconds) { Ok(Some(seconds)) } else { Err(Reason::InvalidClaim) }
}

/// The claims that are looked at, found in one pass.
#[derive(Default)]
struct Registered<'c> {
    iss: Option<&'c Json<'c>>,
    aud: Option<&'c Json<'c>>,
    exp: Option<&'c Json<'c>>,
    nbf: Option<&'c Json<'c>>,
    iat: Option<&'c Json<'c>>,
    sub: Option<&'c Json<'c>>,
    tenant: Option<&'c Json<'c>>,
    jti: Option<&'c Json<'c>>,
    sid: Option<&'c Json<'c>>,
    roles: Option<&'c Json<'c>>,
}

impl<'c> Registered<'c> {
    fn among(members: &'c [(Cow<'c, str>, Json<'c>)]) -> Self {
        let mut found = Self::default();
        for (name, value) in members {
            let place = match &**name {
                "iss" => &mut found.iss,
                "aud" => &mut found.aud,
                "exp" => &mut found.exp,
                "nbf" => &mut found.nbf,
                "iat" => &mut found.iat,
                "sub" => &mut found.sub,
                "tenant" => &mut found.tenant,
                "jti" => &mut found.jti,
                "sid" => &mut found.sid,
                "roles" => &mut found.roles,
                _ => continue,
            };
            *place = Some(value);
        }
        found
    }

    /// Who: these end up in log lines, keys and rows, so NUL and emptiness are refused here once.
    fn check_identity(&self) -> Result<(), Reason> {
        let sound = |text: &str| !text.is_empty() && !text.as_bytes().contains(&0);
        for (claim, refusal) in [
            (self.sub, Reason::InvalidSubject),
            (self.tenant, Reason::InvalidTenant),
            (self.jti, Reason::InvalidClaim),
            (self.sid, Reason::InvalidSession),
        ] {
            match claim {
                None => {}
                Some(Json::Str(text)) if sound(text) => {}
                Some(_) => return Err(refusal),
            }
        }
        let roles = match self.roles {
            None => return Ok(()),
            Some(Json::Array(roles)) => roles,
            Some(_) => return Err(Reason::InvalidRoles),
        };
        let mut names: Vec<&str> = Vec::with_capacity(roles.len());
        for role in roles {
            names.push(role.as_str().filter(|role| sound(role)).ok_or(Reason::InvalidRoles)?);
        }
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) { Err(Reason::InvalidRoles) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TokenVerifier;
    use super::super::jws::tests::{keys, sign};
    use super::*;

    const NOW: f64 = 1_000.0;

    fn verdict(expected: Expected, payload: &str) -> Option<Reason> {
        let token = sign(r#"{"alg":"HS256","typ":"at+jwt"}"#, payload.as_bytes());
        TokenVerifier::new(keys(), expected).unwrap().verify(token.as_bytes(), NOW).err()
    }

    fn parties(payload: &str) -> Option<Reason> {
        let expected = Expected { issuer: Some("flx".into()), audience: Some("flx-api".into()), ..Expected::default() };
        verdict(expected, payload)
    }

    #[test]
    fn times_are_numbers_in_range_and_now_is_over() {
        let cases = [
            (r#"{"exp":1001}"#, None),
            (r#"{"exp":1000.5}"#, None),
            (r#"{"exp":1.1e3}"#, None),
            (r#"{"exp":1000}"#, Some(Reason::Expired)),
            (r#"{"exp":0}"#, Some(Reason::Expired)),
            (r#"{"exp":"1001"}"#, Some(Reason::InvalidClaim)),
            (r#"{"exp":null}"#, Some(Reason::InvalidClaim)),
            (r#"{"exp":true}"#, Some(Reason::InvalidClaim)),
            (r#"{"exp":[1001]}"#, Some(Reason::InvalidClaim)),
            (r#"{"exp":-1}"#, Some(Reason::InvalidClaim)),
            (r#"{"exp":1e30}"#, Some(Reason::InvalidClaim)),
            (r#"{"exp":1000000000000000000000000000000}"#, Some(Reason::InvalidPayload)),
            (r#"{"nbf":1000,"iat":1000}"#, None),
            (r#"{"nbf":1000.5}"#, Some(Reason::NotYetValid)),
            (r#"{"nbf":"999"}"#, Some(Reason::InvalidClaim)),
            (r#"{"nbf":null}"#, Some(Reason::InvalidClaim)),
            (r#"{"iat":1001}"#, Some(Reason::IssuedInFuture)),
            (r#"{"iat":"x"}"#, Some(Reason::InvalidClaim)),
        ];
        for (payload, expected) in cases {
            assert_eq!(expected, verdict(Expected::default(), payload), "{payload}");
        }
        let lenient = Expected { leeway_s: 30, ..Expected::default() };
        for (payload, expected) in [
            (r#"{"exp":971,"nbf":1030,"iat":1030}"#, None),
            (r#"{"exp":970}"#, Some(Reason::Expired)),
            (r#"{"nbf":1031}"#, Some(Reason::NotYetValid)),
        ] {
            assert_eq!(expected, verdict(lenient.clone(), payload), "{payload}");
        }
    }

    #[test]
    fn parties_are_compared_exactly() {
        let cases = [
            (r#"{"iss":"flx","aud":"flx-api"}"#, None),
            (r#"{"iss":"flx","aud":["x","flx-api"]}"#, None),
            (r#"{"aud":"flx-api"}"#, Some(Reason::WrongIssuer)),
            (r#"{"iss":"fl","aud":"flx-api"}"#, Some(Reason::WrongIssuer)),
            (r#"{"iss":"flx/","aud":"flx-api"}"#, Some(Reason::WrongIssuer)),
            (r#"{"iss":"FLX","aud":"flx-api"}"#, Some(Reason::WrongIssuer)),
            (r#"{"iss":["flx"],"aud":"flx-api"}"#, Some(Reason::InvalidClaim)),
            (r#"{"iss":"flx"}"#, Some(Reason::WrongAudience)),
            (r#"{"iss":"flx","aud":"flx-api2"}"#, Some(Reason::WrongAudience)),
            (r#"{"iss":"flx","aud":""}"#, Some(Reason::WrongAudience)),
            (r#"{"iss":"flx","aud":[]}"#, Some(Reason::WrongAudience)),
            (r#"{"iss":"flx","aud":["flx-api",1]}"#, Some(Reason::InvalidClaim)),
            (r#"{"iss":"flx","aud":{"flx-api":1}}"#, Some(Reason::InvalidClaim)),
            (r#"{"iss":"flx","aud":0}"#, Some(Reason::InvalidClaim)),
        ];
        for (payload, expected) in cases {
            assert_eq!(expected, parties(payload), "{payload}");
        }
        assert_eq!(Some(Reason::WrongAudience), verdict(Expected::default(), r#"{"aud":"flx-api"}"#));
        assert_eq!(None, verdict(Expected::default(), r#"{"iss":"anyone"}"#));
    }

    #[test]
    fn identity_claims_have_their_types() {
        let cases = [
            (r#"{"sub":"a","roles":["admin","viewer"],"tenant":"t","jti":"j"}"#, None),
            (r#"{"roles":[]}"#, None),
            (r#"{"sub":""}"#, Some(Reason::InvalidSubject)),
            (r#"{"sub":"a\u0000"}"#, Some(Reason::InvalidSubject)),
            (r#"{"sub":1}"#, Some(Reason::InvalidSubject)),
            (r#"{"sub":null}"#, Some(Reason::InvalidSubject)),
            (r#"{"sub":"a","sub":"admin"}"#, Some(Reason::InvalidPayload)),
            (r#"{"sub":"\ud800"}"#, Some(Reason::InvalidPayload)),
            (r#"{"roles":"admin"}"#, Some(Reason::InvalidRoles)),
            (r#"{"roles":1}"#, Some(Reason::InvalidRoles)),
            (r#"{"roles":null}"#, Some(Reason::InvalidRoles)),
            (r#"{"roles":["admin","admin"]}"#, Some(Reason::InvalidRoles)),
            (r#"{"roles":[["admin"]]}"#, Some(Reason::InvalidRoles)),
            (r#"{"roles":[""]}"#, Some(Reason::InvalidRoles)),
            (r#"{"tenant":1}"#, Some(Reason::InvalidTenant)),
            (r#"{"tenant":""}"#, Some(Reason::InvalidTenant)),
            (r#"{"jti":1}"#, Some(Reason::InvalidClaim)),
            (r#"{"sid":"s"}"#, None),
            (r#"{"sid":1}"#, Some(Reason::InvalidSession)),
            (r#"{"sid":null}"#, Some(Reason::InvalidSession)),
            (r#"{"sid":""}"#, Some(Reason::InvalidSession)),
            (r#"{"sid":"s\u0000"}"#, Some(Reason::InvalidSession)),
            ("[]", Some(Reason::InvalidPayload)),
            ("\"a\"", Some(Reason::InvalidPayload)),
            ("", Some(Reason::MalformedToken)),
        ];
        for (payload, expected) in cases {
            assert_eq!(expected, verdict(Expected::default(), payload), "{payload}");
        }
    }

    #[test]
    fn required_claims_and_typ_are_required() {
        let required = Expected { required: vec!["exp".into(), "sub".into()], ..Expected::default() };
        assert_eq!(None, verdict(required.clone(), r#"{"exp":2000,"sub":"a"}"#));
        assert_eq!(Some(Reason::MissingClaim), verdict(required.clone(), r#"{"sub":"a"}"#));
        assert_eq!(Some(Reason::MissingClaim), verdict(required, r#"{"exp":2000}"#));
        for (typ, expected) in [
            ("at+jwt", None),
            ("AT+JWT", None),
            ("application/at+jwt", None),
            ("JWT", Some(Reason::WrongType)),
            ("refresh+jwt", Some(Reason::WrongType)),
            ("application/x/at+jwt", Some(Reason::WrongType)),
        ] {
            assert_eq!(expected, verdict(Expected { typ: Some(typ.into()), ..Expected::default() }, "{}"), "{typ}");
        }
    }

    #[test]
    fn expectations_nobody_can_mean_are_refused() {
        for expected in [
            Expected { issuer: Some(String::new()), ..Expected::default() },
            Expected { leeway_s: MAX_LEEWAY_S + 1, ..Expected::default() },
        ] {
            assert!(TokenVerifier::new(keys(), expected).is_err());
        }
    }
}
