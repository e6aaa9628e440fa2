plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

android {
    namespace = "org.edgec.sample"
    compileSdk = 35

    defaultConfig {
        applicationId = "org.edgec.sample"
        minSdk = 24
        targetSdk = 35
        versionCode = 1
        versionName = "0.1.0"
        ndk { abiFilters += listOf("arm64-v8a", "armeabi-v7a", "x86_64") }
    }
    packaging {
        jniLibs {
            // artifacts are opened as files, so they must be unpacked when the app is installed
            useLegacyPackaging = true
            // stripped, they would no longer have the digest that edgec wrote into them, and be refused
            keepDebugSymbols += "**/libmodel_*.so"
        }
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_1_8
        targetCompatibility = JavaVersion.VERSION_1_8
    }
    kotlinOptions { jvmTarget = "1.8" }
}

dependencies {
    implementation(project(":edgert"))
    implementation(libs.activity.ktx)
    implementation(libs.camera.camera2)
    implementation(libs.camera.lifecycle)
    implementation(libs.camera.view)
}
